"""Changing a plan by hand: edits in, plans out, each as exact as one that the planner made. Pure."""

from agent.planner.edit.apply import adopt_plan, apply_edit, begin_edit, possible_sizes, spare_places
from agent.planner.edit.edited import Basis, Edited
from agent.planner.edit.edits import (
    AddStage,
    Edit,
    MoveBoundary,
    PlaceStage,
    RemoveStage,
    Replan,
    SetServing,
    SetTensor,
    ShareHeads,
    edit_words,
)

__all__ = [
    "AddStage",
    "Basis",
    "Edit",
    "Edited",
    "MoveBoundary",
    "PlaceStage",
    "RemoveStage",
    "Replan",
    "SetServing",
    "SetTensor",
    "ShareHeads",
    "adopt_plan",
    "apply_edit",
    "begin_edit",
    "edit_words",
    "possible_sizes",
    "spare_places",
]
