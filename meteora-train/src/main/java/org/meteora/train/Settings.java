package org.meteora.train;

import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Function;
import org.meteora.UserException;
import org.meteora.data.config.Nearest;

/**
 * Reads typed settings out of a map of names to YAML values, and keeps what was read in the values'
 * place; mistakes name the key.
 */
final class Settings {
  private final Map<String, Object> values = new LinkedHashMap<>();
  private final String where;

  /**
   * @param known all names that may occur
   */
  Settings(String where, Map<String, Object> values, Collection<String> known) {
    this.where = where;
    for (var entry : values.entrySet()) {
      var key = entry.getKey().replace('-', '_');
      if (!known.contains(key)) {
        throw new UserException(
            "%s: unknown key \"%s\"%s",
            where,
            entry.getKey(),
            Nearest.to(key, known).map(k -> ", did you mean \"" + k + "\"?").orElse(""));
      }
      if (entry.getValue() != null) {
        this.values.put(key, entry.getValue());
      }
    }
  }

  /** Gives a setting a value, unless it has one; null: none. */
  void over(String key, Object standard) {
    if (standard != null) {
      values.putIfAbsent(key, standard);
    }
  }

  void put(String key, Object value) {
    values.put(key, value);
  }

  Map<String, Object> values() {
    return Map.copyOf(values);
  }

  boolean has(String key) {
    return values.containsKey(key);
  }

  private UserException wrong(String key, String wanted) {
    return new UserException(
        where + ": " + key + " must be " + wanted + ", it is \"" + values.get(key) + "\"");
  }

  int integer(String key, int minimum) {
    int number = (int) whole(key, minimum, Integer.MAX_VALUE);
    values.put(key, number);
    return number;
  }

  long whole(String key, long minimum) {
    long number = whole(key, minimum, Long.MAX_VALUE);
    values.put(key, number);
    return number;
  }

  private long whole(String key, long minimum, long maximum) {
    long number;
    try {
      number = Long.parseLong(values.get(key).toString().replace("_", ""));
    } catch (NumberFormatException e) {
      throw wrong(key, "a whole number");
    }
    if (number < minimum || number > maximum) {
      throw wrong(key, number < minimum ? "at least " + minimum : "at most " + maximum);
    }
    return number;
  }

  double number(String key, double minimum, double maximum) {
    double number;
    try {
      number = Double.parseDouble(values.get(key).toString());
    } catch (NumberFormatException e) {
      throw wrong(key, "a number");
    }
    if (!(number >= minimum && number <= maximum)) {
      throw wrong(key, "between " + minimum + " and " + maximum);
    }
    values.put(key, number);
    return number;
  }

  boolean flag(String key) {
    boolean flag =
        switch (values.get(key).toString()) {
          case "true" -> true;
          case "false" -> false;
          default -> throw wrong(key, "true or false");
        };
    values.put(key, flag);
    return flag;
  }

  <T> Optional<T> ifGiven(String key, Function<String, T> read) {
    return has(key) ? Optional.of(read.apply(key)) : Optional.empty();
  }

  Optional<String> text(String key) {
    return Optional.ofNullable(values.get(key)).map(Object::toString);
  }

  String choice(String key, String... choices) {
    var value = values.get(key).toString();
    if (!List.of(choices).contains(value)) {
      throw wrong(key, "one of " + String.join(", ", choices));
    }
    values.put(key, value);
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
    values.put(key, List.copyOf(result));
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
