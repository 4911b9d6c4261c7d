"""
Line grammars of the haiku corpus.

A grammar is rows joined by ";", a row slots joined by "/", a slot choices joined by "|": each choice of a
slot goes with each of the next, so that a row of 6 / 6 / 6 holds 216 lines. The corpus keeps the lines of
the length it needs, by its own syllable count. Line breaks and blanks count as one blank.
"""

# What happens in the second line (seven syllables), by season.
SEASON_IMAGES: dict[str, str] = {
    "spring": """
        the first warm wind|a soft rain|pale morning light|slow sunlight|a mild breeze|
        the scent of plum
          / wanders|drifts|slips|moves|passes
          / through the orchard|over the fields|along the hedge|across the pond|into the yard|
          down the lane;
        plum blossoms|small buds|young ferns|green shoots|violets|apple trees
          / open|tremble|unfold|brighten|wake
          / in the soft rain|by the gate|along the stream|in the first light|beside the wall|
          near the old well;
        swallows|small birds|two robins|white clouds|kites
          / return|circle|wander|gather|play
          / over the roofs|above the barn|in the mild air|beyond the hill|all afternoon;
        the river|a thin stream|meltwater|the brook
          / sings|murmurs|hurries|chatters
          / over bright stones|under the bridge|past the mill|to the village|beneath the thaw""",
    "summer": """
        a long afternoon|the warm dusk|thick heat|an idle breeze|yellow light|the scent of hay
          / settles|lingers|leans|spreads|rests
          / over the wheat|on the porch|along the shore|among the reeds|across the hills|
          in the tall grass;
        slow clouds|fireflies|dragonflies|barn swallows|small moths
          / drift|circle|wander|hover|gather|glide
          / over the pond|along the creek|above the barn|in the blue dusk|past the open door|
          around the lamp;
        the crickets|cicadas|tree frogs|a few bees
          / sing|hum|murmur|tune their one note
          / all afternoon|in the dry grass|in the warm dark|under the leaves|until the rain;
        sunlight|a sunbeam|the noon light
          / sleeps|dozes|dances|glitters
          / on the water|in the clover|on the tin roof|between the pines|along the wall""",
    "autumn": """
        a cold wind|a thin rain|the late sun|wood smoke|the evening mist|one slow cloud
          / drifts|slips|wanders|lingers|passes
          / over the stubble|through bare branches|along the ridge|across the lake|down the valley|
          past the orchard;
        red leaves|yellow leaves|dry leaves|maple leaves|brown oak leaves
          / fall|gather|whisper|scatter|turn
          / on the dark pond|along the road|at the river|beneath the oak|by the window|in the dim light;
        wild geese|three crows|the last birds|starlings
          / cross|follow|darken|leave behind
          / the pale moon|the evening sky|the empty field|a long cloud|the harvest moon;
        the scarecrow|an old gate|the last pear|a heron / waits|listens|stands still|leans|stays
          / in the field|in moonlight|by the pond|without sound|in long dusk|in the mist""",
    "winter": """
        the first snow|a slow snow|white silence|pale light|deep frost|blue shadow
          / settles|gathers|lingers|rests|deepens
          / on the gate|over the field|along the eaves|in the pines|beside the road|upon the roofs;
        bare branches|cold stars|icicles|stiff reeds|birches / glitter|shiver|shine|tremble|whiten|glow
          / in the snow|by the fence|in still air|at the well|in moonlight|at sunrise;
        the north wind|a thin wind|the long night|the cold
          / listens|whistles|wanders|knocks
          / at the window|down the chimney|through the pines|at each dark door|over the hills;
        smoke|thin smoke|one lantern|a far light
          / rises|wavers|trembles|glows
          / in the blue dusk|beyond the trees|over the snow|from the farmhouse|at the crossroads""",
}

# The same by theme of the topic.
THEME_IMAGES: dict[str, str] = {
    "ice": """
        silver blades|bright skates|quick feet|two thin tracks
          / write|carve|scratch|trace
          / white lines on the ice|slow loops|a cold song|their names in the frost|one long curve|
          the whole pond;
        white breath|laughter|a cheer|bright frost|one sharp whistle
          / rises|hangs|drifts|glitters|rings out
          / over the ice|in the cold air|above the rink|through the bright cold|past the pine trees;
        red cheeks|thick gloves|the children|old friends
          / meet|gather|wait|glow|shine
          / by the fire|in the snow light|on the white hill|under bright lamps|at the lake's edge""",
    "sport": """
        the crowd|a cheer|one whistle|a long hush
          / rises|falls silent|hovers|echoes|swells
          / over the field|in the warm dusk|from the far stands|above the grass|past the goal posts;
        quick feet|long shadows|tired legs|bright shirts|young runners
          / cross|follow|chase|leave
          / the white line|the evening light|the last lap|the worn grass|the setting sun;
        my heart|each breath|the body|one heartbeat
          / counts|answers|remembers|follows
          / the rhythm|the drum of feet|its own slow drum|a far drum|the old game""",
    "music": """
        one note|a low note|the melody|an old tune|the last chord|soft singing
          / drifts|lingers|wanders|trembles|rises
          / through the window|in the dark hall|over the roofs|along the street|between the trees;
        slow fingers|old hands|the strings|the dancers
          / remember|follow|search for|find
          / the old song|the beat|a softer note|the way back home|what words forgot;
        the whole room|the street|the silence|the night
          / listens|leans closer|holds its breath|waits|hums
          / for one more note|in the half dark|behind the song|as the lamps dim|between two notes""",
    "kitchen": """
        steam|warm steam|a sweet smell|thin smoke|the kettle's breath
          / rises|curls|wanders|drifts|lingers
          / from the blue bowl|through the kitchen|over the stove|past the window|from the dark pot;
        one spoon|the old knife|one slow hand|a clay cup|the white plate
          / rests|waits|shines|gleams
          / on the table|beside the bread|in the lamplight|near the window|by the stove|in late light;
        warm hands|old friends|small children|my mother's hands
          / share|pass|remember|hold
          / the blue bowl|the last sweet bite|one cup|the summer's sweetness|what hunger knows""",
    "animal": """
        small feet|soft paws|bright eyes|quick wings|light steps
          / cross|follow|find|wake
          / the wet grass|the garden path|the quiet field|the moonlit yard|the fallen leaves|
          a thin moon;
        a soft call|a rustle|one small cry|a shadow
          / drifts|moves|slips|comes
          / through the tall grass|along the hedge|from the wood|over the pond|between trees;
        the forest|the whole field|a still pond|the long grass
          / waits|listens|trembles|watches
          / in moonlight|at the sound|in the dark|all night|for the dawn""",
    "garden": """
        morning dew|a soft rain|green light|a warm wind|the late sun
          / gathers|rests|trembles|lingers|settles
          / on each leaf|in the garden|between the stones|along the path|upon the moss;
        deep roots|new leaves|small seeds|bright petals
          / dream|listen|open|wait|tremble
          / in the dark earth|beneath the snow|under the rain|beside the wall|for the first sun;
        the gardener|one slow bee|a white moth|grandfather
          / pauses|wanders|lingers|rests|stops
          / in the green shade|by the gate|among leaves|before rain|at the well""",
    "sea": """
        gray waves|white gulls|small waves|the slow hours
          / carry|follow|wash|remember
          / the lost shells|the empty boats|my footprints|the song of stones|old ropes and nets|
          the moon home;
        the tide|a white sail|the harbor light|a slow wave|sea mist
          / turns|wanders|drifts|returns|lingers
          / beyond the pier|over the sand|along the shore|past the last rock|without a sound;
        one lamp|a gull's cry|the old wharf|wet sand
          / trembles|fades|listens|glitters|shines
          / in the sea wind|at the tide line|under the stars|before the storm""",
    "road": """
        street lamps|lit windows|tall shadows|headlights|late clouds / flicker|tremble|shine|glow|gleam
          / in the thin rain|along the road|over wet stone|beyond the bridge|past the station;
        a stranger|the night guard|someone old|a young man / waits|listens|lingers|smiles|stands still
          / by the clock|in the rain|at the stop|on the bridge|with one bag|at the corner;
        the long road|a far bell|the city|an old street / hums|murmurs|leads home|listens|bends
          / in the rain|past the last lamp|between two hills|through the night|in blue dusk""",
    "craft": """
        slow hands|old hands|patient hands|worn fingers|the master's hands
          / shape|follow|remember|mend
          / the rough wood|one small thing|the quiet work|what time has worn|the broken edge|
          a thin line;
        lamplight|the late sun|fine dust|a warm glow|the evening light
          / settles|lingers|falls|rests
          / on the workbench|over the tools|along the grain|in the doorway|across the floor;
        the workshop|an apron|the old bench|a stool
          / smells of|remembers|keeps|gathers
          / rain|cedar|oil and smoke|the long day|his father's voice|fresh paint""",
    "machine": """
        a small light|one green light|the bright screen|a thin wire|cold steel
          / blinks|hums|glows|listens|waits
          / in the dark|through the night|by my hand|on the desk|without words|until dawn;
        bright numbers|small signals|old gears|quiet thoughts
          / wander|turn|murmur|travel|pass
          / toward the stars|all winter|in the silence|beyond the dark|one by one;
        somewhere|far away|tonight|in the dark
          / a fan|a gear|a small motor|a clock
          / whispers|keeps turning|keeps count|hums on|starts again|remembers""",
    "home": """
        dust|lamplight|the late sun|a slow warmth|thin moonlight
          / settles|lingers|gathers|falls|rests
          / on the table|in the hallway|along the shelf|beside the bed|across the floor;
        the old clock|a floorboard|one small lamp|a loose shutter
          / ticks|answers|whispers|murmurs|glows
          / in the next room|behind the door|until morning|to itself|all night long;
        my mother|a small child|the old dog|grandfather
          / hums|listens|waits|falls asleep|smiles
          / by the window|in the kitchen|near the fire|at the front door""",
    "heart": """
        the heart|an old song|a soft voice|one small word|the mind
          / wanders|lingers|returns|drifts|waits
          / through the rain|in empty rooms|along the shore|beneath the stars|past midnight|
          like evening mist;
        I keep|I hold|we share|we carry|you leave
          / a small light|an old letter|one warm stone|the last of the light|what the rain said|
          a quiet room;
        slow rain|moonlight|a river|the long night|the wind
          / forgets|gathers|carries|answers
          / what I could not say|each small thing|the old names|all that we lost|my one question""",
}

# The last line (five syllables): of the season, of the theme, and of any.
SEASON_CLOSINGS: dict[str, str] = {
    "spring": """
        the plum|the whole hill|one petal|a robin|the garden|each bud
          / begins|opens|listens|answers|wakes
          / again|at last|to the rain|slowly|in the sun;
        petals on|rain on|sunlight on
          / my sleeve|the water|the path|both our hats|the new grass|every stone;
        and then the|so soon the|at last the
          / plum trees|blossoms|swallows|first leaf|green hills|warm rain""",
    "summer": """
        the crickets|a firefly|the whole field|warm dark|one cloud
          / begins|answers|hums|listens|sings
          / again|at last|to itself|slowly|for hours;
        fireflies in|starlight in|moths in
          / the reeds|the wheat|the garden|our hair|the dark trees|a jar;
        a taste of|the sound of|and then the / plums|distant rain|crickets|warm rain|thunder|long dusk""",
    "autumn": """
        the maple|a last leaf|one acorn|the last pear / lets go|departs|drops down;
        leaves on|mist on|moonlight on
          / the path|the water|my sleeve|cold stones|the fields|the empty road;
        and then the|so soon the|at last the
          / wild geese|first frost|long night|cold moon|bare trees|gray rain""",
    "winter": """
        the pine|the whole hill|one lantern|a star|the snow
          / listens|trembles|waits|brightens|shines
          / again|at last|in the dark|alone|till dawn;
        snow on|frost on|moonlight on
          / the gate|the pine trees|my sleeve|every roof|the still pond|the road;
        and then the|so soon the|at last the
          / snowfall|first star|long night|white moon|stillness|warm lamp""",
}
THEME_CLOSINGS: dict[str, str] = {
    "ice": """
        frost on|light on|snow on / the blades|both gloves|the rink|the boards|our scarves|the white ice;
        cold hands|red cheeks|old skates / by the fire|in the snow|still singing|in lamplight;
        the cold|the ice|the rink / sings under us|holds the moon|goes quiet""",
    "sport": """
        one more lap|one more leap|one more throw|one last race / till dusk|at last|alone|for joy;
        the crowd|the field|the score / holds its breath|goes quiet|fades away|waits for us;
        mud on|sweat on|dusk on / the white line|my forehead|the worn ball|both our knees""",
    "music": """
        the last note|one low string|an old drum|the echo / still hums|lingers|goes on|fades out;
        and then the|only the / silence|applause|echo|refrain|last chord;
        a song|a chord|one voice / we once knew|without words|in the dark|goes with me""",
    "kitchen": """
        steam on|salt on|crumbs on / the window|my fingers|the table|a blue plate|both our hands;
        a cup for|a chair for|bread for / each guest|us both|my mother|old friends|the moon|the neighbors;
        the pot|the stove|the bowl / is still warm|sings softly|waits for us|is empty""",
    "animal": """
        two bright eyes|a warm nose|soft footsteps|small shadows / at dusk|nearby|in moonlight|by the gate;
        the hedge|the dark|the grass / rustles twice|has bright eyes|moves again|is awake;
        fur in|tracks in|a nest in / the moonlight|the wet grass|the soft snow|the branches""",
    "garden": """
        mud on|dew on|sunlight on / my boots|both hands|the old spade|every leaf|the green gate;
        one seed|one leaf|one root / remembers|drinks the rain|finds the light|at a time;
        the green|the shade|the scent / deepens here|comes indoors|follows us""",
    "sea": """
        salt on|foam on|mist on / my lips|the rocks|the dark boats|our shoes|the long pier|the sails;
        the tide|the sea|one gull / comes back late|takes its time|answers me|knows the way;
        sand in|stars in|salt in / my pockets|the still bay|our old shoes|the tide pools""",
    "road": """
        one more mile|one more bridge|one more hill / of rain|to go|toward home|at dusk;
        the map|the rail|the road / forgets us|ends in mist|bends toward home|hums along;
        rain on|dusk on|neon on / the platform|wet pavement|the windshield|the dark glass|our sleeves""",
    "craft": """
        sawdust on|dust on|light on / the floor|both hands|an old sleeve|the workbench|his glasses;
        a thing made|work well done|one last stitch|one more stroke / by hand|at dusk|holds fast|in time;
        the tools|the hands|old nails / go to sleep|know the way|still gleaming""",
    "machine": """
        one small light|the cursor|a red lamp|the dark screen / blinks|hums on|still blinks|goes out;
        a circuit|a signal|the motor / dreams on|wakes up|falls still|hums low;
        numbers in|lights in|a hum in / the darkness|the cold rack|the small hours|our dreams""",
    "home": """
        dust on|light on|rain on / the sill|the stairs|the windows|my slippers|an old chair;
        we left|you left|someone left / the light on|a lamp lit|the door wide|one light on|it lit;
        the house|the porch|the clock / creaks softly|falls asleep|waits for us|remembers""",
    "heart": """
        what rain|what love|what time / remembers|leaves behind|gives away|cannot hold;
        a small word|one candle|an old name|my shadow / still burns|remains|stays near|waits here;
        we let|I let|you let / the night pass|the tears come|it all go|the rain speak""",
}
CLOSINGS = """
    only the / wind|moon|rain|clock|river|old pond / remains|listens|replies|answers|knows;
    only the / stars|crows|far hills|mountains / remain|listen|reply|answer|know;
    nobody|no one|someone / hurries|speaks a word|says a word|waves goodbye|looks up|turns back;
    how long the|how still the|how soft the|how slow the
      / evening|moonlight|river|night becomes|shadows|day becomes|silence;
    my hands|my shoes|old friends|these hands
      / remember|are full of light|grow quiet|learn to wait|are still warm;
    the moon|the night|the light|the world|the dark
      / takes its time|listens|waits with us|holds its breath|leans in close|lets go;
    one star,|one bird,|one leaf, / then another|then the dark|then many;
    a door|a gate|a window|a hand / left open|opens slowly|half open;
    we walk home|we sit down / slowly|in silence|smiling|again;
    I wait here|I stand still / in silence|smiling|again;
    and nothing|and no one|and silence / is lost|moves at all|is late|answers|stays"""

# The first line (five syllables) when the topic stands in the second.
OPENINGS: dict[str, str] = {
    "spring": """
        first light|warm rain|petals|pale sun|a soft breeze
          / on the pond|in the plum trees|at the gate|on the river|on the hill|in the orchard|
          on wet grass|on the new leaves""",
    "summer": """
        warm dusk|noon heat|starlight|thunder|a slow breeze
          / on the lake|over the wheat|in the reeds|on the tin roof|on the hills|in the tall grass|
          by the shore|past the orchard""",
    "autumn": """
        red leaves|cold rain|wood smoke|thin mist|a late sun
          / on the path|over the fields|by the gate|in the valley|on the lake|past the orchard|
          on the hill|on the old road""",
    "winter": """
        first snow|deep frost|moonlight|cold stars|a pale sun
          / on the roofs|over the hills|in the pines|by the river|on the gate|on the still pond|
          in the birches|on the fence""",
}

# Syllables left beside the topic -> frames of the line that names it. Before {t} stands a space or nothing.
FRAMES: dict[int, str] = {
    0: "{t}",
    1: "oh, {t}|still {t}|{t} now|dusk, {t}|just {t}|{t} here",
    2: """
        {t} again|only {t}|{t} at dusk|{t} at dawn|once more, {t}|{t} alone|and then, {t}|{t} at night|
        tonight, {t}""",
    3: """
        thinking of {t}|I dream of {t}|{t}, and then rain|{t} in the dusk|all day long, {t}|
        {t}, nothing else|this evening, {t}""",
    4: """
        {t}, and then the rain|{t} after the rain|{t}, and no one speaks|nothing but {t}, now|
        a whole day of {t}|someone dreams of {t}|{t} in the half light""",
    5: """
        all night I dream of {t}|and somewhere a bell, {t}|and then, all at once, {t}|
        again and again, {t}""",
    6: "again and again, just {t}|I wake, and I think of {t}|and all through the evening, {t}",
}
SEASON_FRAMES: dict[str, dict[int, str]] = {
    "spring": {
        2: "{t} in spring|{t} in bloom|{t} in May",
        3: "{t} in soft rain|{t} in spring rain|{t} at first light|{t} in April",
        4: "{t} on a spring day|{t} in the spring rain|{t} in morning light|{t} under blossoms",
    },
    "summer": {
        2: "{t} at noon|{t} in June",
        3: "{t} in the heat|{t} in July|{t} in warm dusk|{t} in tall grass",
        4: "{t} in summer rain|{t} in August heat|{t} under the stars|{t} on a long day",
    },
    "autumn": {
        2: "{t} in mist|{t} in fall",
        3: "{t} in cold rain|{t} in autumn|{t} in the mist|{t} at harvest",
        4: "{t} in autumn wind|{t} in the late sun|{t} in October|{t} under red leaves",
    },
    "winter": {
        2: "{t} in snow|{t} in frost",
        3: "{t} in the snow|{t} in cold air|{t} in winter|{t} before dawn",
        4: "{t} in winter light|{t} on a cold night|{t} in the first snow|{t} under cold stars",
    },
}
