"""The plugins that Maat is made of; each lives in fixtures/, one concern a file."""

pytest_plugins = [
    "pytester",  # the harness tests itself by it
    "fixtures.determinism",
    "fixtures.devices",
    "fixtures.data",
    "fixtures.measuring",
    "fixtures.claims",
    "fixtures.chain",
    "fixtures.gate",
    "fixtures.resuming",
    "fixtures.selecting",
    "fixtures.faults",
]
