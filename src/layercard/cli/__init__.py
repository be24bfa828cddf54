"""The command line, one file a command: `probe`, `plan`, `plugins`; more come from plugins. Starting it imports no torch."""
