"""Pure decisions about faults: (state, event) -> (state, instructions). It never acts, and reads no clock.

`state` holds what a controller knows of one deployment's health, `events` what may happen to it (past tense),
`instructions` what may be done (imperative), `react` decides, and `detect` turns observations into events.
"""
