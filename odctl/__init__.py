"""The operator's side: inventory, SSH, bootstrap, the fleet's live view, the command line and the terminal UI."""
