"""`fedpeat ladder`: levels of a model, each of them measured, and those that are worth having.

    request -> rows -> build -> measure -> rungs -> publish

`measure` executes, in processes; `rungs` decides. What is measured, and the format of what is written: docs/ladder.md.
"""
