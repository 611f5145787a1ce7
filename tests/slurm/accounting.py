"""slurmdbd and MariaDB beside a cluster, for who wants to see it with `sacct`."""

import getpass
import subprocess


def start(cluster) -> None:
    """Start both, before slurmctld. Raises RuntimeError if they don't answer."""
    data, socket_ = cluster.folder / "mysql", cluster.folder / "mysqld.sock"
    user = getpass.getuser()
    cluster.run("mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={user}",
             "--auth-root-authentication-method=normal", "--skip-test-db")  # fmt: skip
    subprocess.Popen(
        ["mariadbd", "--no-defaults", f"--user={user}", f"--datadir={data}",
         f"--socket={socket_}", f"--pid-file={cluster.folder}/mariadbd.pid", "--skip-networking",
         "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"],
        env=cluster.environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    cluster.wait(socket_.exists)
    (cluster.folder / "mysql.sock").symlink_to(socket_)
    settings = cluster.folder / "slurmdbd.conf"
    settings.touch(mode=0o600)
    settings.write_text(
        f"AuthType=auth/munge\nAuthInfo=socket={cluster.folder}/munge.socket\nDbdHost=localhost\n"
        f"DbdAddr=127.0.0.1\nDbdPort={cluster.port + 91}\nSlurmUser={user}\n"
        f"PidFile={cluster.folder}/slurmdbd.pid\nLogFile={cluster.folder}/slurmdbd.log\n"
        "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=root\n"
        "StorageLoc=slurm_acct\n"
    )
    here = {**cluster.environment, "MYSQL_UNIX_PORT": str(socket_)}
    subprocess.run(["slurmdbd"], env=here, check=True)
    named = ("sacctmgr", "--noheader", "list", "cluster")
    add = ("sacctmgr", "-i", "add", "cluster", "lab")
    cluster.wait(lambda: cluster.run(*named, check=False) or cluster.run(*add, check=False))
    cluster.run("sacctmgr", "-i", "add", "account", "lab", "Cluster=lab", check=False)
    cluster.run("sacctmgr", "-i", "add", "user", user, "Account=lab", check=False)
