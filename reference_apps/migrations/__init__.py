"""The tables of predictions and labels, from each shape that they had to the next; feedback_schema.py runs them.

A change of a table is a new file in versions/, with the one before it as its `down_revision`. A test holds the tables
of feedback_schema.py to what all of them make together. Nobody runs alembic by hand.
"""
