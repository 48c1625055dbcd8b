"""What stands between an executor's futures and the spool."""
