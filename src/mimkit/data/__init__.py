"""Data: what a person names with --data enters, batches on the device leave."""
