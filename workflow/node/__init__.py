"""What runs on a compute node: each job turns a spec and a folder into a record."""
