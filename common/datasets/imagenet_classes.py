"""The ten-class subsets of ImageNet that distillation papers use: their names, their classes and the order of these.

A class's label is its place in the list, as published; it is not the place of its WordNet id among sorted folders.
"""

from __future__ import annotations

PREFIX = "imagenet-"
WHOLE = "ImageNet"  # what the trajectory-matching code calls the dataset, with a subset named beside it

# By key: WordNet id -> name, in the order of the labels.
SUBSETS: dict[str, dict[str, str]] = {
    "a": {
        "n02111129": "Leonberg", "n02489166": "proboscis monkey", "n11879895": "rapeseed",
        "n02457408": "three-toed sloth", "n03042490": "cliff dwelling", "n12057211": "yellow lady's slipper",
        "n02342885": "hamster", "n03447447": "gondola", "n02071294": "killer whale", "n02013706": "limpkin",
    },
    "b": {
        "n02006656": "spoonbill", "n06359193": "web site", "n01820546": "lorikeet", "n02116738": "African hunting dog",
        "n13044778": "earthstar", "n04487081": "trolleybus", "n01872401": "echidna", "n02112018": "Pomeranian",
        "n03841143": "odometer", "n02025239": "ruddy turnstone",
    },
    "c": {
        "n03393912": "freight car", "n01833805": "hummingbird", "n03344393": "fireboat", "n03208938": "disk brake",
        "n01828970": "bee eater", "n02606052": "rock beauty", "n02129165": "lion", "n02017213": "European gallinule",
        "n02280649": "cabbage butterfly", "n01531178": "goldfinch",
    },
    "d": {
        "n01518878": "ostrich", "n02111889": "Samoyed", "n01534433": "junco", "n02112706": "Brabancon griffon",
        "n01592084": "chickadee", "n02389026": "sorrel", "n02276258": "admiral", "n01622779": "great grey owl",
        "n01829413": "hornbill", "n02277742": "ringlet",
    },
    "e": {
        "n04277352": "spindle", "n01843383": "toucan", "n01860187": "black swan", "n02056570": "king penguin",
        "n03992509": "potter's wheel", "n03924679": "photocopier", "n04153751": "screw", "n01774750": "tarantula",
        "n03857828": "oscilloscope", "n02281787": "lycaenid",
    },
    "imagenette": {
        "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
        "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
        "n03445777": "golf ball", "n03888257": "parachute",
    },
    "imagewoof": {
        "n02096294": "Australian terrier", "n02093754": "Border terrier", "n02111889": "Samoyed", "n02088364": "beagle",
        "n02086240": "Shih-Tzu", "n02089973": "English foxhound", "n02087394": "Rhodesian ridgeback",
        "n02115641": "dingo", "n02099601": "golden retriever", "n02105641": "Old English sheepdog",
    },
    "fruits": {
        "n07753275": "pineapple", "n07753592": "banana", "n07745940": "strawberry", "n07747607": "orange",
        "n07749582": "lemon", "n07768694": "pomegranate", "n07753113": "fig", "n07720875": "bell pepper",
        "n07718472": "cucumber", "n07742313": "Granny Smith",
    },
    "yellow": {
        "n02206856": "bee", "n12057211": "yellow lady's slipper", "n07753592": "banana", "n07749582": "lemon",
        "n12144580": "corn", "n04146614": "school bus", "n03530642": "honeycomb", "n02129165": "lion",
        "n01773157": "garden spider", "n01531178": "goldfinch",
    },
    "cats": {
        "n02123045": "tabby", "n02123159": "tiger cat", "n02123394": "Persian", "n02123597": "Siamese",
        "n02124075": "Egyptian", "n02129165": "lion", "n02129604": "tiger", "n02128925": "jaguar",
        "n02128757": "snow leopard", "n02127052": "lynx",
    },
    "birds": {
        "n01806143": "peacock", "n02007558": "flamingo", "n01818515": "macaw", "n02051845": "pelican",
        "n02056570": "king penguin", "n01614925": "bald eagle", "n01843383": "toucan", "n01518878": "ostrich",
        "n01860187": "black swan", "n01819313": "cockatoo",
    },
    "geo": {
        "n09472597": "volcano", "n09193705": "alp", "n09332890": "lakeside", "n09288635": "geyser",
        "n09256479": "coral reef", "n09421951": "sandbar", "n09399592": "promontory", "n09428293": "seashore",
        "n09246464": "cliff", "n09468604": "valley",
    },
    "food": {
        "n07697313": "cheeseburger", "n07697537": "hotdog", "n07695742": "pretzel", "n07873807": "pizza",
        "n07684084": "French loaf", "n07614500": "ice cream", "n07583066": "guacamole", "n07831146": "carbonara",
        "n07693725": "bagel", "n07613480": "trifle",
    },
    "mammals": {
        "n02504458": "African elephant", "n02509815": "lesser panda", "n02437312": "Arabian camel",
        "n02391049": "zebra", "n02364673": "guinea pig", "n01877812": "wallaby", "n01873310": "platypus",
        "n02120079": "Arctic fox", "n02346627": "porcupine", "n02480855": "gorilla",
    },
    "marine": {
        "n02071294": "killer whale", "n01484850": "great white shark", "n02655020": "puffer", "n02317335": "starfish",
        "n01664065": "loggerhead", "n02077923": "sea lion", "n01910747": "jellyfish", "n01914609": "sea anemone",
        "n01978455": "rock crab", "n02606052": "rock beauty",
    },
}  # fmt: skip

NAMES = tuple(f"{PREFIX}{key}" for key in SUBSETS)

# The trajectory-matching code has other keys for four of them, and its paper shorter names for two.
SYNONYMS = {
    "imagefruit": "fruits",
    "imageyellow": "yellow",
    "imagemeow": "cats",
    "meow": "cats",
    "imagesquawk": "birds",
    "squawk": "birds",
}


def canonical(name: str) -> str:
    """The standard name of a subset that has several names (imagenet-meow becomes imagenet-cats).

    Any other name is returned unchanged.
    """
    key = name.removeprefix(PREFIX)
    return f"{PREFIX}{SYNONYMS[key]}" if name.startswith(PREFIX) and key in SYNONYMS else name


def resolve(dataset: str, subset: str | None) -> tuple[str, str | None]:
    """A dataset's canonical name where it was named in two parts (ImageNet, imagenette), and the part that is left.

    Nothing is left where the parts make sense; what makes none is returned as it is. A subset "none" is no subset, as
    the authors' scripts say with other datasets.
    """
    if subset is not None and subset.lower() == "none":
        subset = None
    if dataset == WHOLE and subset is not None:
        name = canonical(f"{PREFIX}{subset}")
        if name in NAMES:
            return name, None
    return canonical(dataset), subset
