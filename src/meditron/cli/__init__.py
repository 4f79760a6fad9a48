"""The door: one file a verb group, thin over the rooms below."""
