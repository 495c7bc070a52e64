"""Text that no model was trained on, to measure perplexity with. Written for this file; plain English prose."""

HELD_TEXT = """\
The lamp at the end of the harbour wall had been dark for a week before anyone wrote it down. Ships found their
way in by the lights of the fish market, which opened at three, and by the habit of their captains, who had not
looked at the lamp for years. When the keeper came back from the hospital he read the log, counted the nights,
and sent a boy for oil and a new wick. He did not ask who had forgotten. In a small town the answer to that
question is everybody.

A machine that runs for a long time collects such lamps. There is a fan that stopped in spring, a disk that
answers a little later each month, a cable that somebody moved and put back almost straight. None of these
things is a failure. Each of them is a promise of one, and the art of keeping machines is mostly the art of
reading promises. If a program waits for a reply, it should say how long it is willing to wait. If a function
returns a value that means nothing was found, the caller should be made to look at it. If a number is measured
in seconds, its name should say so, because the person who reads it next will be tired and will think of
milliseconds.

She began with the smallest room. On the left stood a cabinet of forty drawers, each with a paper label, and on
the right a table on which her uncle had sorted seeds. The labels were in his hand: beans from the hill farm,
barley of the dry year, a pale kind of pea that he had bought from a man on a train and that never came up. She
pulled out the drawers one after another and wrote what she found. By noon the list had three hundred lines and
a pattern. Whatever he had been given he had kept; whatever he had bought he had planted at once, and lost.

To divide work fairly among unequal helpers, first find out how fast each one is, then give each a share in that
proportion, and then watch. The first two steps can be done on paper. The third cannot, and it is the one that
matters, since a helper who was fast in the morning may be slow in the afternoon for reasons that no paper
knows. When one of them stops, the others should learn of it soon and take over what was left, without starting
again from the beginning and without doing the same piece twice. It sounds simple. Most of what is difficult
about computers is hidden in the words soon, again and twice.

The river is four hundred metres wide at the ferry and rarely more than six deep. In a dry summer the ferryman
stands on the last step of the landing and shows visitors the marks that his grandfather cut into the stone: the
flood of the wet autumn at the height of a man's chest, the flood of the war above his head, and between them,
quite low, a line with no date. Nobody knows what it stands for. Some say that it is where the water was when
the first ferry crossed, others that a mason tried his chisel there. The ferryman says that it is the height at
which one should stop asking.

Water boils when its vapour presses as hard as the air above it, so on a mountain it boils sooner and cooks
worse. A list that is sorted can be searched by halves: look at the middle, decide which side is meant, and
forget the other. After twenty such steps a million entries have become one. A key that opens every door is kept
by nobody, or by the wrong person. Bread that is baked too hot is dark outside and wet within. If two clocks
disagree, the time is not known; if three disagree, at least the doubt can be measured. All of these were known
long before they were written.
"""
