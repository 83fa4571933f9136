"""State of a study on any storage: records of finished work, the lock of its driver, and filters."""
