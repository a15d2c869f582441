"""Programs for those who work on the project; nothing here is part of the packages or of the extension."""
