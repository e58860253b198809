package org.meteora.eval.metric;

import java.lang.reflect.Modifier;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.data.tasks.Tasks;
import org.meteora.eval.statistics.Figure;

/** A score of cleaned answers against the truths. */
public interface Metric {
  /**
   * @param truths what was expected, one for each answer
   * @return figures by name, in the order to show; a value is a number, a record, or null when
   *     there is nothing to score
   */
  Map<String, Object> score(List<String> answers, List<String> truths);

  /**
   * What the scores are made of, sample by sample, for intervals and comparisons; their values are
   * those of {@link #score}.
   *
   * @param answers as for {@link #score}
   * @param truths as for {@link #score}
   */
  List<Figure> figures(List<String> answers, List<String> truths);

  /**
   * The metric of this key: its class in this package, the key's words joined, each with a capital
   * letter ({@code exact_accuracy}: {@link ExactAccuracy}). A new class is a new metric.
   *
   * @throws UserException when there is none
   */
  static Metric of(String key) {
    if (key.matches("[a-z][a-z0-9]*(_[a-z0-9]+)*")) {
      var name = new StringBuilder(Metric.class.getPackageName()).append('.');
      for (var word : key.split("_")) {
        name.append(Character.toUpperCase(word.charAt(0))).append(word.substring(1));
      }
      try {
        var found = Class.forName(name.toString(), false, Metric.class.getClassLoader());
        if (Metric.class.isAssignableFrom(found) && !Modifier.isAbstract(found.getModifiers())) {
          return (Metric) found.getDeclaredConstructor().newInstance();
        }
      } catch (ClassNotFoundException e) {
        // told below
      } catch (ReflectiveOperationException e) {
        throw new IllegalStateException(name + " cannot be made", e);
      }
    }
    var known = Tasks.all().stream().flatMap(task -> task.metrics().stream()).sorted().distinct();
    throw new UserException(
        "no metric \"" + key + "\"; there are " + String.join(", ", known.toList()));
  }
}
