"""report.html: what a report holds as pictures and tables, in one file that runs no script and loads nothing."""
