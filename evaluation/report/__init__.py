"""The HTML report: its page, sections, charts and gallery."""
