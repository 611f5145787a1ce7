"""Sync of records and journals to MLflow. Jobs never talk to MLflow."""
