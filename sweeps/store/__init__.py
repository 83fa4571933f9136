"""What has been done: records, lock, filters."""
