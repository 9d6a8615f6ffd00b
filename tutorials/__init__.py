"""Chapters for people, in Markdown; tutorials/making keeps them true to what the commands print."""
