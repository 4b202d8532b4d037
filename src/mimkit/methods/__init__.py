"""Methods: settings and an encoder enter, a task for the loop leaves; one file each."""
