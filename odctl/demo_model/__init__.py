"""Makes a small model that speaks, without torch and without a network: for the demo, the lab and the tests.

Its text is the documentation that Python itself ships. What it learns is small (which word follows the last
eight), the directory it writes is a real model of its family in Hugging Face's layout.
"""

from __future__ import annotations

from odctl.demo_model.write import DemoChoices, write_demo_model

__all__ = ["DemoChoices", "write_demo_model"]
