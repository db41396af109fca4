"""Words that the generated marketplace's titles are made of."""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "Camping": ("tent", "sleeping bag", "camping stove", "headlamp", "hiking backpack", "folding chair"),
    "Kitchen": ("frying pan", "chef knife", "cutting board", "stock pot", "mixing bowl", "spice grinder"),
    "Coffee": (
        "espresso beans",
        "hand grinder",
        "pour over dripper",
        "paper filters",
        "milk frother",
        "travel mug",
    ),
    "Audio": ("headphones", "bluetooth speaker", "turntable", "record cleaner", "audio cable", "earbud case"),
    "Phones": ("phone case", "screen protector", "fast charger", "power bank", "car mount", "charging cable"),
    "Gardening": (
        "pruning shears",
        "seed tray",
        "watering can",
        "plant pot",
        "potting soil",
        "garden gloves",
    ),
    "Running": (
        "running shoes",
        "running socks",
        "hydration vest",
        "sports watch",
        "reflective band",
        "energy gel",
    ),
    "Yoga": ("yoga mat", "yoga block", "resistance band", "foam roller", "meditation cushion", "leggings"),
    "Babies": ("baby bottle", "nappies", "pacifier", "swaddle blanket", "bath thermometer", "teething ring"),
    "Toys": ("building bricks", "wooden train", "puzzle", "plush bear", "board game", "marble run"),
    "Painting": ("acrylic paint", "paint brush", "canvas", "easel", "sketchbook", "watercolour set"),
    "Stationery": ("fountain pen", "ink bottle", "notebook", "washi tape", "desk organiser", "planner"),
    "Skincare": ("face cream", "cleansing gel", "sun lotion", "serum", "clay mask", "lip balm"),
    "Pets": ("dog leash", "cat litter", "chew toy", "pet bed", "food bowl", "scratching post"),
    "Cycling": ("bike helmet", "bike light", "inner tube", "tyre pump", "pannier bag", "chain oil"),
    "Lighting": ("desk lamp", "fairy lights", "pendant shade", "led bulb", "candle holder", "night light"),
}
"""Category → its product types; a type goes well with the next one of its category."""

STYLES = (
    "classic",
    "minimal",
    "vintage",
    "organic",
    "premium",
    "compact",
    "colourful",
    "rugged",
    "eco",
    "smart",
    "handmade",
    "budget",
)

BRAND_STARTS = ("Nor", "Al", "Ve", "Ki", "Bra", "Sol", "Lu", "Ter", "Fa", "Mo")
BRAND_ENDS = ("dal", "vero", "nia", "rast", "mara", "lund")

VARIANTS = (
    "black",
    "white",
    "green",
    "blue",
    "red",
    "sand",
    "grey",
    "small",
    "large",
    "duo",
    "set of 3",
    "plus",
)
