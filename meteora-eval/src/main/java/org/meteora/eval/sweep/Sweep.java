package org.meteora.eval.sweep;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import org.meteora.UserException;
import org.meteora.data.config.Nearest;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.router.Routers;

/**
 * Settings to try in all combinations.
 *
 * @param keys what varies, in the user's order, each with its values
 */
public record Sweep(Map<String, List<String>> keys) {
  private static final String TOP_K = "routing_top_k";
  private static final String TEMPERATURE = "routing_temperature";
  private static final String ROUTER = "router";

  /** What can be varied without loading the model again: the one place to add a key. */
  private static final List<String> KNOWN = List.of(TOP_K, TEMPERATURE, ROUTER);

  /**
   * One combination.
   *
   * @param values by key
   */
  public record Point(Map<String, String> values) {
    /** {@code routing_top_k=1,routing_temperature=4}, which is its folder's name too. */
    public String name() {
      return String.join(
          ",", values.entrySet().stream().map(e -> e.getKey() + "=" + e.getValue()).toList());
    }

    /**
     * The routing of this point; what does not vary is as given.
     *
     * @param routers by name
     */
    public RoutingSettings routing(RoutingSettings others, Function<String, Router> routers) {
      return new RoutingSettings(
          values.containsKey(TOP_K) ? Integer.parseInt(values.get(TOP_K)) : others.topK(),
          values.containsKey(TEMPERATURE)
              ? Double.parseDouble(values.get(TEMPERATURE))
              : others.temperature(),
          values.containsKey(ROUTER) ? routers.apply(values.get(ROUTER)) : others.router());
    }
  }

  /**
   * @param options {@code KEY=V1,V2,…} each
   * @throws UserException naming what is wrong
   */
  public static Sweep of(List<String> options) {
    var keys = new LinkedHashMap<String, List<String>>();
    for (var option : options) {
      int equals = option.indexOf('=');
      if (equals < 1) {
        throw new UserException("--sweep needs KEY=V1,V2,…, not " + option);
      }
      var key = option.substring(0, equals).replace('-', '_');
      if (!KNOWN.contains(key)) {
        throw new UserException(
            "--sweep: %s cannot be varied, only %s%s",
            key, String.join(", ", KNOWN), Nearest.hint(key, KNOWN));
      }
      var values = List.of(option.substring(equals + 1).split(",", -1));
      values.forEach(value -> check(key, value));
      if (values.stream().distinct().count() < values.size()) {
        throw new UserException("--sweep " + option + ": a value is there twice");
      }
      if (keys.put(key, values) != null) {
        throw new UserException("--sweep " + key + " is given twice");
      }
    }
    return new Sweep(keys);
  }

  private static void check(String key, String value) {
    if (key.equals(ROUTER)) {
      Routers.require(value);
      return;
    }
    try {
      double number = key.equals(TOP_K) ? Integer.parseInt(value) : Double.parseDouble(value);
      if (number > 0 && Double.isFinite(number)) {
        return;
      }
    } catch (NumberFormatException e) {
      // said below
    }
    throw new UserException(
        "--sweep %s: %s are needed, not \"%s\"",
        key, key.equals(TOP_K) ? "whole numbers from 1" : "numbers above 0", value);
  }

  /** All combinations; the last key varies fastest. */
  public List<Point> points() {
    var points = List.of(new Point(Map.of()));
    for (var key : keys.entrySet()) {
      var more = new ArrayList<Point>();
      for (var point : points) {
        for (var value : key.getValue()) {
          var values = new LinkedHashMap<>(point.values());
          values.put(key.getKey(), value);
          more.add(new Point(values));
        }
      }
      points = more;
    }
    return points;
  }
}
