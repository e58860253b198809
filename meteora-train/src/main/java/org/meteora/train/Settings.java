package org.meteora.train;

import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import org.meteora.UserException;
import org.meteora.data.config.Nearest;

/** Reads typed settings out of a map of names to YAML values; mistakes name the key. */
final class Settings {
  private final Map<String, Object> values = new LinkedHashMap<>();
  private final String where;

  /**
   * @param where where the values come from, for messages
   * @param known all names that may occur
   */
  Settings(String where, Map<String, Object> values, Collection<String> known) {
    this.where = where;
    for (var entry : values.entrySet()) {
      var key = entry.getKey().replace('-', '_');
      if (!known.contains(key)) {
        throw new UserException(
            "%s: unknown key \"%s\"%s"
                .formatted(
                    where,
                    entry.getKey(),
                    nearest(key, known).map(k -> ", did you mean \"" + k + "\"?").orElse("")));
      }
      if (entry.getValue() != null) {
        this.values.put(key, entry.getValue());
      }
    }
  }

  /** The known name with the fewest edits, when there is a close one. */
  static Optional<String> nearest(String word, Collection<String> known) {
    return Nearest.to(word, known);
  }

  boolean has(String key) {
    return values.containsKey(key);
  }

  private UserException wrong(String key, String wanted) {
    return new UserException(
        where + ": " + key + " must be " + wanted + ", it is \"" + values.get(key) + "\"");
  }

  int integer(String key, int otherwise, int minimum) {
    long value = whole(key, otherwise, minimum);
    if (value > Integer.MAX_VALUE) {
      throw wrong(key, "at most " + Integer.MAX_VALUE);
    }
    return (int) value;
  }

  long whole(String key, long otherwise, long minimum) {
    var value = values.get(key);
    if (value == null) {
      return otherwise;
    }
    long number;
    try {
      number = Long.parseLong(value.toString().replace("_", ""));
    } catch (NumberFormatException e) {
      throw wrong(key, "a whole number");
    }
    if (number < minimum) {
      throw wrong(key, "at least " + minimum);
    }
    return number;
  }

  double number(String key, double otherwise, double minimum, double maximum) {
    var value = values.get(key);
    if (value == null) {
      return otherwise;
    }
    double number;
    try {
      number = Double.parseDouble(value.toString());
    } catch (NumberFormatException e) {
      throw wrong(key, "a number");
    }
    if (!(number >= minimum && number <= maximum)) {
      throw wrong(key, "between " + minimum + " and " + maximum);
    }
    return number;
  }

  boolean flag(String key, boolean otherwise) {
    var value = values.get(key);
    if (value == null) {
      return otherwise;
    }
    return switch (value.toString()) {
      case "true" -> true;
      case "false" -> false;
      default -> throw wrong(key, "true or false");
    };
  }

  Optional<String> text(String key) {
    return Optional.ofNullable(values.get(key)).map(Object::toString);
  }

  String choice(String key, String otherwise, String... choices) {
    var value = text(key).orElse(otherwise);
    if (!List.of(choices).contains(value)) {
      throw wrong(key, "one of " + String.join(", ", choices));
    }
    return value;
  }

  /** Whole numbers: as {@link #list}. */
  Set<Integer> integers(String key) {
    var result = new TreeSet<Integer>();
    for (var item : list(key)) {
      try {
        result.add(Integer.parseInt(item));
      } catch (NumberFormatException e) {
        throw wrong(key, "whole numbers with commas between them");
      }
    }
    return result;
  }

  /** A list: a YAML list, or text with commas. */
  List<String> list(String key) {
    var value = values.get(key);
    if (value == null) {
      return List.of();
    }
    var items = value instanceof Collection<?> c ? c : List.of(value.toString().split(","));
    return items.stream()
        .map(item -> item.toString().strip())
        .filter(item -> !item.isEmpty())
        .toList();
  }
}
