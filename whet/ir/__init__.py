"""The intermediate representation: types, operator records, graphs and their reference semantics.

Everything that whet knows about an operator is derived from its record, a few lines of index
notation in `whet.ir.ops`. Read in this order: `types`, `expr`, `record`, `ops`, `graph`, `interp`.
"""
