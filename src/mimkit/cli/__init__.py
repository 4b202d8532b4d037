"""The command line: words enter, a command runs, an exit status leaves."""
