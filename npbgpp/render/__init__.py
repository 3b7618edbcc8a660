"""From geometry to pixels: functions without weights, each fast one beside a plain reference."""
