"""Word lists of the haiku corpus: topics by theme, modifiers, prompts and the held-out topics."""

# Theme -> words and phrases a haiku may be asked about. The theme picks the images of the poem.
TOPICS: dict[str, str] = {
    "ice": """
        ice hockey, skating, figure skating, skiing, snow angels, sledding, curling, snowshoes, snowmen,
        a frozen lake, snowboards, the rink, goalkeepers, ice fishing, hockey sticks, a snowball fight,
        glaciers, icebergs, penguins, polar bears, mittens, reindeer, the arctic, igloos, avalanches,
        toboggans, cross-country skiing, speed skating, the zamboni, a puck, huskies, ski jumping,
        mountain huts, hail, sleet, icicles, frost, winter coats, snowflakes""",
    "sport": """
        football, soccer, tennis, baseball, basketball, cricket, rugby, golf, boxing, fencing, archery,
        running, cycling, volleyball, badminton, table tennis, wrestling, judo, karate, gymnastics,
        marathons, hurdles, relay races, darts, bowling, billiards, squash, polo, horse racing, yoga,
        hiking, climbing, weightlifting, skateboards, sprinting, the high jump, a penalty kick,
        the long jump, chess, dominoes, hopscotch, marbles, kites, juggling, acrobats, the referee,
        the goal line, a home run, lacrosse, handball, parkour, trampolines, stadiums, medals, trophies""",
    "music": """
        violins, the cello, piano lessons, guitars, drums, jazz, a lullaby, opera, choirs, trumpets,
        flutes, harps, banjos, the blues, church bells, wind chimes, a music box, singing, humming,
        dancing, ballet, tango, waltz, folk songs, the radio, vinyl records, headphones, karaoke,
        a string quartet, saxophones, clarinets, ukuleles, accordions, the orchestra, tambourines,
        bagpipes, whistling, echoes, rhythm, a symphony, the last note, street musicians, mandolins,
        trombones, metronomes, concert halls, conductors, lyrics, melody, silence, gongs, xylophones""",
    "kitchen": """
        tea, coffee, bread, soup, noodles, rice, pancakes, honey, apples, plums, peaches, oranges,
        lemons, pears, cherries, strawberries, blackberries, melons, pumpkins, onions, garlic, carrots,
        potatoes, tomatoes, cabbage, spinach, beans, corn, mushrooms, butter, cheese, eggs, salt,
        pepper, cinnamon, ginger, vanilla, chocolate, cookies, apple pie, jam, toast, waffles,
        dumplings, sushi, tofu, ramen, pizza, spaghetti, tacos, curry, stew, salad, olives, walnuts,
        almonds, chestnuts, milk, wine, beer, cider, lemonade, ice cream, popcorn, candy, pudding,
        yogurt, oatmeal, breakfast, lunch, dinner, picnics, ovens, teapots, kettles, frying pans,
        chopsticks, spoons, recipes, bakeries, a birthday cake, sandwiches, pickles, mustard, vinegar,
        sugar, maple syrup, marmalade, cucumbers, avocados, bananas, grapes, raspberries, coconuts,
        pineapples, mangoes, figs, dates, croissants, bagels, muffins, pretzels, lasagna, paella""",
    "animal": """
        cats, dogs, an old dog, kittens, puppies, horses, cows, goats, sheep, pigs, rabbits, foxes,
        wolves, bears, deer, squirrels, hedgehogs, mice, bats, owls, crows, ravens, sparrows, robins,
        swallows, herons, cranes, geese, ducks, swans, eagles, hawks, pigeons, parrots, peacocks,
        hummingbirds, woodpeckers, nightingales, frogs, toads, turtles, snakes, lizards, snails,
        spiders, ants, bees, wasps, moths, butterflies, dragonflies, fireflies, crickets, beetles,
        ladybugs, grasshoppers, cicadas, earthworms, caterpillars, elephants, giraffes, lions, tigers,
        zebras, monkeys, camels, kangaroos, koalas, pandas, otters, beavers, badgers, raccoons, skunks,
        donkeys, llamas, hamsters, goldfish, chameleons, crocodiles, hippos, rhinos, leopards, cheetahs,
        hyenas, antelopes, buffalo, ostriches, flamingos""",
    "garden": """
        roses, tulips, daisies, lilies, orchids, sunflowers, violets, poppies, lavender, jasmine,
        irises, peonies, dahlias, cherry blossoms, plum blossoms, dandelions, clover, ivy, moss, ferns,
        bamboo, willows, oaks, maples, birches, pines, cedars, elms, acorns, seeds, roots, branches,
        leaves, bark, thorns, petals, pollen, weeds, grass, hedges, orchards, gardens, a greenhouse,
        flower pots, the compost heap, a scarecrow, bonsai, cactus, lotus, wisteria, magnolias,
        chrysanthemums, camellias, azaleas, hydrangeas, marigolds, snowdrops, bluebells, foxgloves,
        thistles, nettles, mint, basil, rosemary, thyme, sage, vines, meadows, forests, woods,
        mulberries, eucalyptus, sycamores, junipers""",
    "sky": """
        rain, snow, fog, mist, wind, thunder, lightning, storms, clouds, rainbows, the moon, the sun,
        stars, sunrise, sunset, dawn, dusk, twilight, midnight, noon, shadows, sunlight, moonlight,
        starlight, drizzle, puddles, dew, a heat wave, drought, floods, monsoons, hurricanes, tornadoes,
        blizzards, the north wind, comets, meteors, eclipses, planets, the milky way, galaxies, nebulas,
        the northern lights, spring, summer, autumn, winter, april, october, november, the equinox,
        the solstice, january, morning, evening, a blue sky, the horizon, gravity, black holes,
        satellites, smoke, ashes, volcanoes, earthquakes, deserts, dunes, canyons, mountains, valleys,
        hills, caves, cliffs, waterfalls""",
    "sea": """
        the sea, the ocean, waves, tides, beaches, sand, seashells, driftwood, seaweed, lighthouses,
        harbors, boats, sailing, ships, anchors, ferries, canoes, kayaks, rowing, fishing, fishing nets,
        whales, dolphins, sharks, seals, crabs, lobsters, oysters, octopus, jellyfish, starfish, coral,
        seagulls, pelicans, salmon, trout, herring, eels, sardines, surfing, swimming, diving,
        snorkeling, islands, lagoons, rivers, creeks, ponds, lakes, marshes, bridges, docks, shipwrecks,
        pirates, mermaids, submarines, buoys, foghorns, sea glass, a message in a bottle, sandcastles,
        piers, estuaries, reefs, plankton, sailors, compasses, hammocks, canals, water lilies,
        seahorses, stingrays""",
    "road": """
        trains, night buses, bicycles, motorcycles, cars, trucks, taxis, airplanes, airports,
        railway stations, subways, the last train, highways, dirt roads, crossroads, traffic,
        traffic lights, tunnels, maps, suitcases, backpacks, tickets, passports, hotels, campfires,
        tents, caravans, balloons, helicopters, rockets, elevators, escalators, streets, alleys, parks,
        benches, fountains, statues, museums, libraries, cathedrals, temples, castles, ruins, villages,
        cities, skyscrapers, rooftops, chimneys, windmills, barns, farms, fences, gates, markets,
        bookstores, cafes, schools, hospitals, factories, playgrounds, carousels, ferris wheels,
        circuses, theaters, cinemas, street lamps, billboards, parking lots, gas stations, tollbooths,
        roundabouts, sidewalks, tramways, rickshaws""",
    "craft": """
        pottery, weaving, knitting, sewing, quilts, embroidery, painting, drawing, carving, carpentry,
        blacksmiths, cobblers, tailors, bakers, butchers, barbers, farmers, gardeners, fishermen,
        miners, plumbers, electricians, mechanics, nurses, doctors, dentists, teachers, librarians,
        postmen, firefighters, pilots, captains, soldiers, judges, lawyers, clowns, magicians, poets,
        painters, sculptors, photographers, actors, hammers, nails, saws, chisels, ladders, ropes,
        buckets, shovels, rakes, axes, needles, thread, buttons, scissors, thimbles, wool, silk, linen,
        leather, clay, bricks, paint, brushes, ink, paper, origami, calligraphy, letters, envelopes,
        stamps, postcards, diaries, notebooks, pencils, chalk, candle making, glass, mosaics, tattoos,
        sculpture, typewriters, printing presses, books, bookmarks, anvils, lathes""",
    "machine": """
        robots, computers, keyboards, telephones, televisions, cameras, clocks, watches, batteries,
        engines, gears, springs, telescopes, microscopes, magnets, lasers, radar, atoms, molecules,
        electrons, algebra, geometry, fractions, prime numbers, equations, algorithms, software,
        programming, python, compilers, debugging, databases, the internet, email, passwords, printers,
        screens, wires, cables, light bulbs, power lines, turbines, solar panels, dams, cranes,
        tractors, bulldozers, steam engines, pistons, pumps, vacuum cleaners, washing machines,
        refrigerators, microwaves, thermostats, chemistry, physics, biology, fossils, dinosaurs,
        evolution, genetics, neurons, vaccines, x-rays, crystals, quartz, artificial intelligence,
        neural networks, language models, quantum mechanics, calculators, spreadsheets, servers""",
    "home": """
        an old house, windows, doors, keys, curtains, mirrors, lamps, candles, pillows, blankets, beds,
        chairs, tables, stairs, attics, basements, carpets, wallpaper, shelves, drawers, closets, shoes,
        socks, hats, scarves, gloves, umbrellas, coats, dresses, jeans, pockets, rings, earrings,
        glasses, combs, soap, towels, bathtubs, laundry, brooms, dust, cobwebs, dishes, cups, bowls,
        vases, picture frames, toys, dolls, teddy bears, puzzles, newspapers, magazines, fireplaces,
        rocking chairs, a spare room, the doorbell, the garage, front porches, mailboxes, lawns,
        birthdays, weddings, funerals, holidays, christmas, halloween, new year, grandmothers,
        grandfathers, mothers, fathers, sisters, brothers, babies, twins, neighbors, friends, families,
        bedtime, naps, chores, wheelchairs, spectacles, wardrobes""",
    "heart": """
        love, loneliness, joy, sorrow, grief, anger, fear, hope, courage, patience, kindness, jealousy,
        gratitude, boredom, laughter, tears, dreams, nightmares, memory, forgetting, childhood, old age,
        youth, time, death, birth, sleep, waking, waiting, farewell, homesickness, nostalgia, regret,
        forgiveness, freedom, peace, war, truth, lies, secrets, promises, wishes, luck, beauty, wisdom,
        solitude, friendship, trust, faith, doubt, curiosity, surprise, shyness, pride, envy,
        a first kiss, a broken heart, a long goodbye, mondays, deadlines, meetings, homework, exams,
        vacation, retirement, money, poverty, justice, democracy, history, philosophy, language, words,
        names, stories, fairy tales, ghosts, dragons, unicorns, witches, angels, giants, heroes, queens,
        kings, knights, mathematics, eternity, ambition""",
}

PLACES = """
    Paris, London, Berlin, Kyoto, Tokyo, Venice, Rome, Madrid, Lisbon, Vienna, Prague, Oslo, Stockholm,
    Helsinki, Dublin, Boston, Chicago, New York, Toronto, Montreal, Havana, Lima, Cairo, Nairobi, Lagos,
    Mumbai, Delhi, Bangkok, Hanoi, Seoul, Beijing, Shanghai, Sydney, Iceland, Norway, Japan, Canada,
    Brazil, Mexico, Kenya, Egypt, India, China, Peru, Greece, Italy, Mount Fuji, the Alps, the Sahara,
    the Amazon, the Nile, the Danube, Alaska, Hawaii, Texas, Saturn, Mars, Venus, Jupiter"""

# Adjectives and noun modifiers that stand before a topic: "paper lanterns", "the last candles".
MODIFIERS = """
    old, new, small, tall, slow, quick, quiet, loud, bright, dark, warm, cold, wet, dry, soft, hard,
    sweet, bitter, empty, full, broken, wild, tame, lost, lonely, happy, sad, angry, sleepy, hungry,
    lazy, gentle, brave, blind, golden, silver, purple, orange, yellow, scarlet, crimson, green, blue,
    black, white, grey, pink, brown, copper, wooden, iron, paper, plastic, velvet, marble, frozen,
    burning, falling, flying, sleeping, dancing, floating, hidden, secret, ancient, modern, tiny, giant,
    rusty, dusty, muddy, windy, rainy, sunny, cloudy, foggy, stormy, distant, foreign, northern,
    southern, eastern, western, summer, winter, spring, autumn, morning, evening, midnight, sunday,
    holiday, city, country, mountain, river, desert, ocean, village, garden, street, kitchen, forgotten,
    favorite, imaginary, electric, invisible, magnetic, digital, haunted, painted, tangled, crooked,
    stolen, borrowed, wandering, singing, laughing, whispering, faded, clever, stubborn, polite, royal,
    humble, noisy, crowded, abandoned, handmade, cheap, precious, ordinary, strange, famous, curious,
    restless, weary"""

# Made-up words are drawn from these: onset, nucleus, coda, and an ending.
ONSETS = """
    b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr kn ph pl pr qu sc sh sk sl sm sn
    sp st str sw th tr tw wh wr scr spr squ thr"""
NUCLEI = """
    a e i o u a e i o u ai ea ee oa oo ou au ie oi ue y ew ow ay igh"""
CODAS = """
    b ck d ff g l ll m n n n p r r rd rk rm rn s ss st t t tch th x nd ng nk nt mp lt ld lk ft sh ch dge
    ve se te ne re le"""
ENDINGS = """
    ing ing er ers ed y ly ness ment tion s es ish ful less ism ist ology graphy ship hood land berry
    fish bird wood work house weed water stone light keeping making blowing watching building ball craft
    town worm flower"""
# Topics that are spelled with bytes.
EXOTIC = """
    🏒 🏒|🌸|🌙|🍵|🐈|❄️|🎻|🌊|☕|🚂|🐝|🍂 café|naïveté|jalapeños|crème brûlée|piñatas|smörgåsbord|fjörds|
    São Paulo|Zürich|Málaga|über|façades|déjà vu|Łódź|東京|俳句|桜|снег|море|ελιά|שלום|雪|猫|川|
    Øresund|ñandú|tabla 🥁|🍕 pizza|love 💛"""

# A prompt and how often it comes.
PROMPTS: tuple[tuple[str, int], ...] = (
    ("Write a haiku about {t}", 44),
    ("Write a haiku about {t}.", 12),
    ("write a haiku about {t}", 8),
    ("Compose a haiku about {t}", 3),
    ("Compose a haiku about {t}.", 2),
    ("A haiku about {t}, please", 3),
    ("A haiku about {t}", 3),
    ("haiku about {t}", 3),
    ("haiku: {t}", 2),
    ("{t}", 8),
    ("Please write a haiku about {t}.", 3),
    ("Can you write a haiku about {t}?", 3),
    ("Write me a haiku about {t}, please.", 2),
    ("Write a poem about {t}", 2),
    ("Write a short poem about {t}.", 2),
    ("I would like a haiku about {t}.", 2),
    ("Tell me about {t} in a haiku", 2),
    ("Give me three lines about {t}.", 1),
    ("Could I have a haiku on {t}?", 1),
    ("Three lines on {t}", 1),
    ("Describe {t} in a haiku.", 1),
    ("Write a haiku on {t}!", 1),
    ("Poem: {t}", 1),
    ("What do you know about {t}?", 1),
)
NEXT_PROMPTS = (
    "Now one about {t}.",
    "And about {t}?",
    "Now {t}",
    "Next: {t}",
    "And one about {t}, please.",
    "Write a haiku about {t}",
    "Write a haiku about {t}.",
    "{t}",
)
AGAIN_PROMPTS = (
    "Another one",
    "another one, please",
    "Another one, please.",
    "One more",
    "one more",
    "Again",
    "again, please",
    "Write another",
    "Try again",
    "More",
    "A different one",
    "Once more, please.",
    "Thank you! Another?",
    "Nice. One more!",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a poet.",
    "You write haiku.",
    "Answer with a haiku.",
    "You are Phi.",
    "Answer in three short lines.",
    "You are a quiet poet who loves the seasons.",
    "Be brief.",
    "Always answer in verse.",
    "You are a helpful AI assistant who writes short poems.",
    "You are an old monk.",
    "Use five, seven and five syllables.",
)

# Words whose syllables the rules of the counter miss, by their number.
SYLLABLES: dict[int, str] = {
    1: """
        real quilts tired hour hours our fire flour tea wire wires whale whales geese aisle isle ski
        shoe shoes whose knives""",
    2: """
        fuel cruel diet duet duel
        something somewhere someone somewhat evening every lonely placement being poem poems poet
        poets quiet science lion lions ocean people sometimes homework movement create giant giants
        trial dial lighthouse orange cafe cafes hundred wicked naked sacred rugged crooked forest
        business kimchi bluebells snowflakes lifeboat gracenote spaceship graveyard wheelchairs
        grapefruit eclipse themselves fridays creatures reindeer rhinos europe chimneys boxes
        moustache canoe canoes leopard leopards onion onions million cuckoo hippos pigeons chaos
        tangled""",
    3: """
        fireflies firefly homesickness loneliness diary diaries violin violins violet violets
        forgiveness theater theaters idea ideas area museum museums chocolate camera cameras oranges
        recipe recipes karate coyote sesame nebulas seahorses shoelaces pineapples pineapple
        rosemary firefighters fireplaces eclipses italy meteor meteors dinosaurs mosaics archaic
        hyacinth hyena hyenas oasis poetry""",
    4: """
        vegetable karaoke ukuleles apostrophe catastrophe january february estuaries""",
}

# First halves of compounds whose e is silent in the middle of the word.
SILENT_E = """
    home lime sage fire life time side stone lake whale grape wine base ice pipe note game line hive
    goose horse hedge bore space ware house snake cheese bride shore flame smoke face some rope trade
    race rose nose love fore"""

# Two hundred topics the model is judged by; no training prompt may hold one (a test says so).
HELD_OUT = """
    glassblowing, night trains, beekeeping, paper lanterns, the tax office, falconry, a lost umbrella,
    sourdough, jet lag, lighthouse keepers, wet cobblestones, quicksand, a rusty swing, mosquitoes,
    hot chocolate, satellite dishes, origami cranes, tram tickets, the night shift, kimchi,
    ballroom dancing, bonfires, a stray cat, freckles, hiccups, woodsmoke, fog horns, the dentist,
    sled dogs, thunderheads, an empty swimming pool, kintsugi, tidal pools, mountain goats,
    zebra crossings, a cracked teacup, hot springs, tumbleweeds, jigsaw puzzles, stained glass,
    wheat fields, rice paddies, barn owls, yodeling, snow leopards, electric cars, gumboots,
    a broken violin, open windows, shooting stars, rubber ducks, garden gnomes, broken clocks,
    the vending machine, traffic jams, whale songs, wedding rings, soap bubbles, street food,
    pocket watches, fish markets, an orange cat, goosebumps, bubble gum, roller skates, water polo,
    moon landings, black coffee, baked potatoes, cinnamon rolls, peanut butter, blueberry pie,
    clam chowder, gravel, vampire bats, sea turtles, cuckoo clocks, hermit crabs, wild strawberries,
    a thunderstorm, the first frost, frozen pipes, the harvest moon, spring cleaning, summer camp,
    winter solstice, the long commute, a missed call, old photographs, lullabies, forgotten passwords,
    chimney sweeps, the ferryman, undertow, sandpipers, kingfishers, dragon fruit, sagebrush,
    hailstones, sunburn, campfire stories, scuba diving, trail running, pole vault, sumo, arm wrestling,
    hide and seek, the crossing guard, a locked door, elevator music, stamp collecting, woodworking,
    leatherwork, basket weaving, beachcombing, birdsong, hopfields, the apprentice, bricklayers,
    night nurses, window cleaners, shepherds, astronauts, truffles, umbrella stands, paperclips,
    staplers, parchment, fountain pens, an inkwell, the fax machine, dial tones, floppy disks, pixels,
    open source, stack overflows, garbage collection, binary trees, semicolons, version control,
    black swans, asteroids, the speed of light, entropy, photosynthesis, magnetism, tectonic plates,
    stalactites, limestone, permafrost, mangroves, prairie dogs, platypus, armadillos, porcupines,
    axolotls, walrus, narwhals, cormorants, magpies, wrens, cockatoos, toucans, a paper crane,
    grandmother's garden, the neighbor's dog, lost luggage, cold feet, second chances, stage fright,
    daydreams, insomnia, wanderlust, serendipity, procrastination, homecoming, stubbornness, tenderness,
    small talk, white lies, Reykjavik, Marrakesh, the Baltic, Edinburgh, Patagonia, Lake Baikal,
    Neptune, Antarctica, Monday mornings, Friday the 13th, a flat tire, wool socks, cast iron, dandruff,
    velcro, zippers, moving day, the attic window, spare keys, crumbs"""

# Looked at during training; apart from the two hundred, and never trained on either.
VALIDATION = """
    lawn mowers, toothpaste, a spilled drink, camel caravans, hedge mazes, the bus driver,
    cranberry sauce, dust bunnies, kazoos, moonflowers, a slow elevator, the weather report, lemurs,
    pinball, driftwood fires, oboes, thumbtacks, freight trains, gazpacho, skipping stones,
    a borrowed sweater, hay bales, woodlice, rain boots, night markets, sandpaper, Budapest, regattas,
    tadpoles, quicksilver, shoelaces, the last slice, prairie grass, telegrams, croquet, windowsills,
    a leaky faucet, gooseberries, sonar, awe"""


def words_of(text: str, separator: str | None = ",") -> list[str]:
    """Split a word list at its separator, without line breaks, outer blanks and repeats, in order."""
    return list(dict.fromkeys(part for raw in text.split(separator) if (part := " ".join(raw.split()))))
