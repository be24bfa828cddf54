"""The command line, one file a command; more commands come from plugins. Starting it imports no torch."""
