"""What the label door does: a data set kept, corrected by several people, proposed for by a model.

A data set is a `row_store.Store`: rows of JSONL files and images that no row names yet, a journal
of all changes, and a revision of each row. A server gives it to a page, and models answer in
processes of their own.
"""
