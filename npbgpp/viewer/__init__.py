"""The viewer: a scene of one or more trained runs in the browser. ``server`` needs viser; the other modules do not."""
