package org.meteora.data.config;

import java.io.StringReader;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.io.Texts;
import org.yaml.snakeyaml.DumperOptions;
import org.yaml.snakeyaml.LoaderOptions;
import org.yaml.snakeyaml.Yaml;
import org.yaml.snakeyaml.constructor.SafeConstructor;
import org.yaml.snakeyaml.error.Mark;
import org.yaml.snakeyaml.error.MarkedYAMLException;
import org.yaml.snakeyaml.error.YAMLException;
import org.yaml.snakeyaml.events.AliasEvent;
import org.yaml.snakeyaml.events.CollectionEndEvent;
import org.yaml.snakeyaml.events.CollectionStartEvent;
import org.yaml.snakeyaml.events.Event;
import org.yaml.snakeyaml.events.ScalarEvent;
import org.yaml.snakeyaml.nodes.Tag;
import org.yaml.snakeyaml.representer.Representer;
import org.yaml.snakeyaml.resolver.Resolver;

/**
 * YAML of settings: maps, lists, texts, numbers, true and false. What YAML has beyond that, aliases
 * that multiply what is written and tags that ask for types, is refused.
 */
public final class PlainYaml {
  private static final int LONGEST = 1 << 20;
  private static final int DEEPEST = 20;
  private static final int LONGEST_NUMBER = 40;

  private PlainYaml() {}

  /**
   * Parses a text.
   *
   * @param where goes into messages: the file
   * @return a {@code Map}, {@code List}, {@code String}, {@code Number}, {@code Boolean}, or null
   *     for a text that says nothing
   * @throws UserException when it is not YAML, or more than plain values, in one line
   */
  public static Object load(String text, String where) {
    var plain = Texts.withoutMark(text);
    if (plain.length() > LONGEST) {
      throw new UserException(where + ": settings of more than 1 MiB are no settings");
    }
    var options = new LoaderOptions();
    options.setAllowDuplicateKeys(false);
    options.setNestingDepthLimit(DEEPEST);
    options.setCodePointLimit(LONGEST + 1);
    try {
      int depth = 0;
      for (var event : yaml(options).parse(new StringReader(plain))) {
        requirePlain(event, where);
        depth +=
            event instanceof CollectionStartEvent
                ? 1
                : event instanceof CollectionEndEvent ? -1 : 0;
        if (depth > DEEPEST) {
          throw new UserException(at(where, event.getStartMark()) + ": nested too deeply");
        }
      }
      return yaml(options).load(plain);
    } catch (MarkedYAMLException e) {
      throw new UserException(
          at(where, e.getProblemMark()) + ": not valid YAML: " + shown(e.getProblem()));
    } catch (YAMLException e) {
      throw new UserException(where + ": not valid YAML: " + shown(e.getMessage()));
    } catch (IllegalArgumentException | ClassCastException | ArithmeticException e) {
      throw new UserException(where + ": not valid YAML: a value that cannot be read");
    }
  }

  private static Yaml yaml(LoaderOptions options) {
    var dumper = new DumperOptions();
    return new Yaml(
        new SafeConstructor(options),
        new Representer(dumper),
        dumper,
        options,
        new PlainResolver());
  }

  /** Numbers, true and false, null; no dates, no merging. */
  private static final class PlainResolver extends Resolver {
    @Override
    public void addImplicitResolver(Tag tag, Pattern regexp, String first, int limit) {
      if (!tag.equals(Tag.TIMESTAMP) && !tag.equals(Tag.MERGE)) {
        super.addImplicitResolver(
            tag,
            regexp,
            first,
            tag.equals(Tag.INT) || tag.equals(Tag.FLOAT) ? LONGEST_NUMBER : limit);
      }
    }
  }

  private static void requirePlain(Event event, String where) {
    if (event instanceof AliasEvent) {
      throw new UserException(
          at(where, event.getStartMark()) + ": aliases (*name) are not read: write the value out");
    }
    var tag =
        switch (event) {
          case ScalarEvent scalar -> scalar.getTag();
          case CollectionStartEvent start -> start.getTag();
          default -> null;
        };
    // the tag of every text between quotes is "!"
    if (tag != null && !tag.equals("!")) {
      throw new UserException(
          at(where, event.getStartMark()) + ": tags are not read: " + shown(tag));
    }
  }

  private static String at(String where, Mark mark) {
    return mark == null ? where : where + ":" + (mark.getLine() + 1);
  }

  /** A text for a message: one line, not long. */
  static String shown(String text) {
    var line = text == null ? "" : text.strip().replaceAll("\\s*\\R\\s*", " ");
    return line.length() <= 200 ? line : line.substring(0, 200) + "…";
  }
}
