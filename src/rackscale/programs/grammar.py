"""The text that rackscale makes itself: questions and answers about racks, gangs, spares and checkpoints.

Made by a small grammar, not downloaded, so that the demo needs no network; small, so that a model of a million
parameters learns it on one CPU core within a minute; and varied in its questions, so that it answers people's own.
"""

from __future__ import annotations

import random

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

CONCEPTS: dict[str, tuple[str, str, str]] = {
    # name: (with its article, what it is, why it is there)
    "rack": (
        "a rack",
        "A rack holds 18 nodes and 72 GPUs in one NVLink domain.",
        "A rack lets 72 GPUs work together as if they were one machine.",
    ),
    "node": (
        "a node",
        "A node is one instance with four GPUs. It is the smallest thing that the scheduler places.",
        "A node is what fails, what is drained, and what a spare replaces.",
    ),
    "NVLink domain": (
        "an NVLink domain",
        "An NVLink domain is a set of nodes whose GPUs are joined by NVLink. On a rack-scale system it is the rack.",
        "Inside an NVLink domain a GPU talks to any other much faster than over the network.",
    ),
    "fabric": (
        "the fabric",
        "The fabric is the network that joins the racks of a cluster.",
        "The fabric carries what must cross from one NVLink domain to another.",
    ),
    "cluster": (
        "a cluster",
        "A cluster is a set of racks on one fabric.",
        "A cluster keeps the racks of one gang close to each other.",
    ),
    "gang": (
        "a gang",
        "A gang is a set of nodes that start together or not at all.",
        "A gang exists because training stops when one of its ranks is missing.",
    ),
    "segment": (
        "a segment",
        "A segment is a part of a gang that stays inside one NVLink domain.",
        "A segment keeps the heaviest traffic of a gang on NVLink.",
    ),
    "rank": (
        "a rank",
        "A rank is one process of a gang. Each rank drives one GPU.",
        "Ranks share the work of each step, so that more GPUs learn faster.",
    ),
    "queue": (
        "a queue",
        "A queue is where jobs wait until there is room for them.",
        "Queues let teams share a fleet without asking each other.",
    ),
    "priority": (
        "a priority",
        "A priority says which job goes first when there is not room for all.",
        "Priorities let production start before experiments.",
    ),
    "spare": (
        "a spare",
        "A spare is a healthy node that is kept free in a rack.",
        "A spare takes the place of a node that dies, so that the gang can go on in the same rack.",
    ),
    "drain": (
        "a drain",
        "A drain takes a node out of service after its work has moved away.",
        "A drain lets people repair a node without killing a job.",
    ),
    "preemption": (
        "preemption",
        "Preemption asks a gang to checkpoint and leave, so that a more urgent one can start.",
        "Preemption makes room at once, and costs only the work since the last checkpoint.",
    ),
    "victim": (
        "a victim",
        "A victim is a gang that must leave to make room for another.",
        "The scheduler chooses the victims that lose the least work.",
    ),
    "attempt": (
        "an attempt",
        "An attempt is one run of a gang from start to end. A gang that restarts begins a new attempt.",
        "Attempts have numbers, so that news of an old one is never taken for news of the new one.",
    ),
    "binding": (
        "a binding",
        "A binding says which nodes a gang holds and which rank runs on each.",
        "A binding lets the executor start exactly what the scheduler decided.",
    ),
    "checkpoint": (
        "a checkpoint",
        "A checkpoint is a copy of the model and the optimizer on shared storage.",
        "A checkpoint lets training go on after a failure without losing more than a little work.",
    ),
    "grace period": (
        "the grace period",
        "The grace period is the time that a gang has to checkpoint before it is killed.",
        "The grace period lets a gang leave without losing work.",
    ),
    "heartbeat": (
        "a heartbeat",
        "A heartbeat is a line in which a rank says how far it is.",
        "Heartbeats show progress, and silence shows that a gang hangs.",
    ),
    "journal": (
        "the journal",
        "The journal is the durable log of every event and every decision.",
        "The journal brings the scheduler back to the same state after a crash.",
    ),
    "twin": (
        "the twin",
        "The twin runs the same scheduler in simulated time.",
        "The twin shows what a change would do before anything is touched.",
    ),
    "executor": (
        "an executor",
        "An executor starts and stops gangs where they really run. There is one for processes and one for Ray.",
        "Executors are thin, so that every one of them runs the same decisions.",
    ),
    "plan": (
        "a plan",
        "A plan says what would start, who would move, and what it would cost.",
        "A plan lets people ask before they touch anything.",
    ),
    "audit": (
        "an audit",
        "An audit compares each plan with what then happened.",
        "An audit shows which forecasts earn trust.",
    ),
    "scheduler": (
        "the scheduler",
        "The scheduler decides which gang runs on which nodes.",
        "The scheduler is pure: the same events always give the same decisions.",
    ),
}

TALK: dict[str, tuple[str, ...]] = {
    # answer: ways to ask for it
    "Hello! Ask me about racks, gangs, spares and checkpoints.": (
        "Hello",
        "Hello!",
        "Hi",
        "Hi there!",
        "Good morning.",
    ),
    "I am a small language model. I was trained by a gang on this machine, and rackscale kept it running.": (
        "Who are you?",
        "What are you?",
        "Who made you?",
        "Tell me about yourself.",
    ),
    "rackscale plans and runs work on racks of GPUs. It shows what would happen before anything is touched.": (
        "What is rackscale?",
        "What does rackscale do?",
        "Tell me about rackscale.",
        "Explain rackscale.",
    ),
    "You are welcome.": ("Thanks", "Thank you.", "Thanks!", "Thank you very much."),
    "The gang stops, a spare takes the place of the node, and training goes on from the last checkpoint.": (
        "What happens when a node dies?",
        "What happens when a node fails?",
        "A node died. What now?",
        "How does a gang survive the loss of a node?",
        "What if a node fails?",
    ),
    "The gang restarts in another rack. When no rack has room, it waits at the front of its queue.": (
        "What happens when there is no spare?",
        "What if there is no spare?",
        "What if the spare is gone?",
    ),
    "There are 72 GPUs in a rack: 18 nodes with four GPUs each.": (
        "How many GPUs does a rack have?",
        "How many GPUs are in a rack?",
        "How many nodes does a rack have?",
        "How big is a rack?",
    ),
    "Each node has four GPUs.": ("How many GPUs does a node have?", "How many GPUs are in a node?"),
    "It waits because no rack has enough free nodes for it, or because a more urgent job goes first.": (
        "Why does my job wait?",
        "Why is my job waiting?",
        "Why has my job not started?",
        "Why do gangs wait?",
        "Why do jobs wait?",
        "When will my job start?",
    ),
    "It takes the gangs with the lowest priority that lose the least work, and asks them to checkpoint and leave.": (
        "How does the scheduler choose victims?",
        "Which gang is preempted first?",
        "Who has to leave?",
        "How are victims chosen?",
    ),
    "No. A gang that is asked to leave writes a checkpoint first, and goes on from there later.": (
        "Is work lost when a gang is preempted?",
        "Does preemption lose work?",
        "Will I lose my work?",
    ),
    "Yes. A checkpoint can be read by any number of ranks.": (
        "Can a gang resume with fewer nodes?",
        "Can a gang resume on other nodes?",
        "Can training go on with more ranks?",
    ),
    "When it has written a checkpoint it leaves, and waits at the front of its queue.": (
        "What does a gang do when it is preempted?",
        "What happens after preemption?",
        "What happens to a victim?",
    ),
    "Work on a drained node moves away first. Nothing new starts there until the drain ends.": (
        "What happens to a drained node?",
        "What does a drain do?",
        "Can a drained node run jobs?",
    ),
    "A gang never starts with only some of its nodes. It starts whole or not at all.": (
        "Can a gang start with fewer nodes?",
        "Can half a gang start?",
        "Does a gang start in pieces?",
    ),
    "No. A segment always stays inside one NVLink domain.": (
        "Can a segment cross racks?",
        "Can a segment span two racks?",
        "May a segment cross an NVLink domain?",
    ),
}

DEFINE = (
    "What is {it}?",
    "What's {it}?",
    "What is {it} in rackscale?",
    "Explain {it}.",
    "Can you explain {it}?",
    "Could you explain what {it} is?",
    "Please tell me about {it}.",
    "What does {name} mean?",
)
DEFINE_MANY = ("What are {name}s?", "Tell me about {name}s.", "Please explain {name}s.")
PURPOSE = (
    "Why is there {it}?",
    "Why do we need {it}?",
    "What is {it} for?",
    "What is {it} good for?",
    "Why {it}?",
)
UNKNOWN = "I do not know. I only learned about racks, gangs, spares and checkpoints."
OFF_TOPIC_ASKS = (
    "What is {x}?",
    "How do I make {x}?",
    "Tell me about {x}.",
    "Who is {x}?",
    "Where is {x}?",
    "Can you write {x}?",
    "Why is {x} so good?",
    "How far is {x}?",
    "Do you like {x}?",
)
OFF_TOPIC = (
    "bread", "tea", "the weather", "music", "Paris", "Rome", "a poem", "a song", "the sea", "my cat", "a dog",
    "football", "the moon", "a story", "coffee", "a tree", "London", "the king", "a car", "a house", "love",
    "winter", "the sun", "a bird", "money", "a film", "dinner", "the news", "Monday", "a river", "my friend",
)  # fmt: skip
TIMES = ("At noon", "At night", "In the morning", "After an hour", "Today", "Then")
PLACES = ("in the first rack", "in the second rack", "in a busy cluster", "on the spare", "in the same rack")
WHAT_HAPPENED = (
    "a gang of {n} nodes starts {place}.",
    "a gang of {n} nodes waits because there is no room.",
    "a node dies {place}, and a spare takes its place.",
    "a gang of {n} ranks writes a checkpoint and goes on.",
    "{n} jobs wait in the queue.",
    "a victim writes a checkpoint and leaves {place}.",
    "the scheduler makes room for a gang of {n} nodes.",
    "{n} nodes are drained {place}.",
    "a production job of {n} nodes goes first.",
    "training goes on {place} with {n} ranks.",
)


def project_text(*, rounds: int = 12, seed: int = 0) -> list[str]:
    """One string per document: every question `rounds` times, facts told plainly, and small stories."""
    dice = random.Random(seed)
    pairs = [(question, answer) for answer, questions in TALK.items() for question in questions]
    pairs += [pair for name in CONCEPTS for pair in _about(name)]
    facts = [f"{what} {why}" for _, what, why in CONCEPTS.values()]
    few = len(pairs) // 8
    documents = []
    for _ in range(rounds):
        off_topic = [dice.choice(OFF_TOPIC_ASKS).format(x=dice.choice(OFF_TOPIC)) for _ in range(few)]
        asked = pairs + [(question, UNKNOWN) for question in off_topic]
        told = [
            f"{USER}{_as_typed(question, dice)}{END}{ASSISTANT}{answer}{END}" for question, answer in asked
        ]
        told += [f"{text}{END}" for text in facts + [_story(dice) for _ in range(few)]]
        dice.shuffle(told)
        documents += told
    return documents


def _about(name: str) -> list[tuple[str, str]]:
    """Questions about one concept, with their answers."""
    it, what, why = CONCEPTS[name]
    can_be_many = it.startswith(("a ", "an ")) and not name.endswith("y")
    define = DEFINE + (DEFINE_MANY if can_be_many else ())
    pairs = [(ask.format(it=it, name=name), what) for ask in define]
    return pairs + [(ask.format(it=it, name=name), why) for ask in PURPOSE]


def _as_typed(question: str, dice: random.Random) -> str:
    """The question as people type it: sometimes without a capital, sometimes without its mark."""
    if dice.random() < 0.25:
        question = question.rstrip("?.!")
    return question[0].lower() + question[1:] if dice.random() < 0.2 else question


def _story(dice: random.Random) -> str:
    sentences = []
    for time in dice.sample(TIMES, k=dice.randint(2, 3)):
        happened = dice.choice(WHAT_HAPPENED).format(
            n=dice.choice((2, 4, 8, 16, 18)), place=dice.choice(PLACES)
        )
        sentences.append(f"{time} {happened}")
    return " ".join(sentences)
