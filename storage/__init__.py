"""Everything that must survive a crash: the only package that speaks SQL.

It imports nothing of ours, hands out plain records, and lets no caller see a
connection. A public method is one transaction; when a method that changes something
has returned, the change is on disk.
"""
