"""What the published Layer Cards are made of: the tables, and how each document's words map to ours."""
