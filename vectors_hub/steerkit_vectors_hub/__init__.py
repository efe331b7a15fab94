"""Getting, finding and publishing packs.

`refs` reads references, `sources` transfer, `cache` keeps, `resolve` joins the three; `load` makes vectors. `push`
publishes with a `card`; `index` describes many packs and `catalogue` shows them. The core imports none of it:
`steerkit` looks `load_vector` up by name, and the commands of the command line import what they use.
"""
