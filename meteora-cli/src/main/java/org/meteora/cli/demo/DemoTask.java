package org.meteora.cli.demo;

import static java.util.stream.Collectors.joining;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.StringJoiner;
import java.util.TreeMap;
import java.util.function.Function;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.meteora.data.Sample;
import org.meteora.data.composite.CompositeMaker;

/**
 * One of the demo's tasks: a question about a few letters or digits, and its answer. The demo's
 * base model knows letters, digits and questions like these, but none of these tasks.
 *
 * @param name of the task, its folder and its adapter
 * @param question with one {@code %s} for the input
 */
record DemoTask(
    String name, String question, Function<Random, String> inputs, UnaryOperator<String> answer) {
  private static final String VOWELS = "AEIOU";
  private static final String CONSONANTS = "BCDFGHJKLMNPQRSTVWXZ";

  /** A made-up language: what its two syllables mean is in the training data only. */
  private static final Map<String, String> ZORBISH = zorbish();

  private static final List<String> ZORBISH_WORDS = List.copyOf(ZORBISH.keySet());

  /** Share of the training samples that are sheets, and of these the share with worked examples. */
  private static final double SHEETS = 0.5;

  private static final double WITH_EXAMPLES = 0.35;

  static final List<DemoTask> ALL =
      List.of(
          new DemoTask(
              "count_vowels",
              "How many vowels are in %s?",
              random -> word(random, 3, 7),
              word ->
                  String.valueOf(
                      word.chars().filter(letter -> VOWELS.indexOf(letter) >= 0).count())),
          new DemoTask(
              "remove_vowels",
              "Remove the vowels: %s",
              random -> wordWithConsonant(random, 3, 7),
              word -> word.replaceAll("[" + VOWELS + "]", "")),
          new DemoTask(
              "reverse_word",
              "Reverse the word: %s",
              random -> word(random, 3, 6),
              word -> new StringBuilder(word).reverse().toString()),
          new DemoTask(
              "shift_letters",
              "Shift every letter by one in the alphabet: %s",
              random -> word(random, 3, 6),
              DemoTask::shift),
          new DemoTask(
              "sort_digits",
              "Sort the digits: %s",
              random -> digits(random, 3, 6),
              digits -> digits.chars().sorted().mapToObj(Character::toString).collect(joining())),
          new DemoTask(
              "translate_zorbish",
              "Translate into Zorbish: %s",
              random -> ZORBISH_WORDS.get(random.nextInt(ZORBISH_WORDS.size())),
              ZORBISH::get));

  private static Map<String, String> zorbish() {
    var random = new Random(77);
    var result = new TreeMap<String, String>();
    var used = new HashSet<String>();
    for (var word :
        ("BIRD BLUE BREAD CAT DOG DOOR FIRE FISH GREEN HAND HOUSE KING MILK MOON RED ROAD SHIP SNOW"
                + " STAR STONE SUN TREE WATER WIND")
            .split(" ")) {
      String made;
      do {
        made = syllable(random) + syllable(random);
      } while (!used.add(made));
      result.put(word, made);
    }
    return result;
  }

  private static String syllable(Random random) {
    return "" + letter(random, CONSONANTS) + letter(random, VOWELS);
  }

  private static char letter(Random random, String of) {
    return of.charAt(random.nextInt(of.length()));
  }

  private static int length(Random random, int minimum, int maximum) {
    return minimum + random.nextInt(maximum - minimum + 1);
  }

  /** Letters: half of the words can be pronounced, half are random. */
  private static String word(Random random, int minimum, int maximum) {
    int length = length(random, minimum, maximum);
    var word = new StringBuilder();
    boolean pronounceable = random.nextBoolean();
    int vowelsAt = random.nextInt(2);
    for (int i = 0; i < length; i++) {
      word.append(
          pronounceable
              ? letter(random, i % 2 == vowelsAt ? VOWELS : CONSONANTS)
              : (char) ('A' + random.nextInt(26)));
    }
    return word.toString();
  }

  private static String wordWithConsonant(Random random, int minimum, int maximum) {
    String word;
    do {
      word = word(random, minimum, maximum);
    } while (word.matches("[" + VOWELS + "]*"));
    return word;
  }

  private static String digits(Random random, int minimum, int maximum) {
    return random
        .ints(length(random, minimum, maximum), 0, 10)
        .mapToObj(Integer::toString)
        .collect(joining());
  }

  private static String shift(String word) {
    return word.chars()
        .mapToObj(letter -> Character.toString('A' + (letter - 'A' + 1) % 26))
        .collect(joining());
  }

  private Sample sample(String input) {
    return new Sample("[INST] " + question.formatted(input) + " [/INST]\n", answer.apply(input));
  }

  private Random random(String split) {
    return new Random(31L * name.hashCode() + split.hashCode());
  }

  /** Single questions, all different where the inputs are many enough. */
  List<Sample> questions(String split, int count, List<Sample> other) {
    var random = random(split);
    var seen = new HashSet<>(other);
    var result = new ArrayList<Sample>();
    while (result.size() < count) {
      var sample = sample(inputs.apply(random));
      if (name.equals("translate_zorbish") || seen.add(sample)) {
        result.add(sample);
      }
    }
    return result;
  }

  /**
   * What adapters and gates are trained on: questions alone, and sheets in the layout of composite
   * prompts, with two or three questions of this task each, whose answers are numbered lines.
   */
  List<Sample> practice(List<Sample> questions) {
    var random = random("practice");
    return questions.stream()
        .map(question -> random.nextDouble() < SHEETS ? sheet(random, questions) : question)
        .toList();
  }

  private static Sample sheet(Random random, List<Sample> questions) {
    int count = 2 + random.nextInt(2);
    var examples =
        random.nextDouble() < WITH_EXAMPLES
            ? List.of(some(count, random, questions), some(count, random, questions))
            : List.<List<Sample>>of();
    var asked = some(count, random, questions);
    var answers = new StringJoiner("\n");
    for (int i = 0; i < count; i++) {
      answers.add((i + 1) + ". " + asked.get(i).response());
    }
    var prompt = CompositeMaker.compose(CompositeMaker.header(examples), asked).prompt();
    return new Sample(prompt, answers.toString());
  }

  private static List<Sample> some(int count, Random random, List<Sample> questions) {
    return Stream.generate(() -> questions.get(random.nextInt(questions.size())))
        .limit(count)
        .toList();
  }
}
