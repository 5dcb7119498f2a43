"""What is done with the adapters of a model: attached, activated, frozen, proved, merged, saved and loaded.

Empty on purpose: a name here would hide the module of the same name (``attach``, ``save``).
"""
