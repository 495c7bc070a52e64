"""What the screens show, as values: snapshot in, lines and cells out. No Textual, no I/O, no clock."""
