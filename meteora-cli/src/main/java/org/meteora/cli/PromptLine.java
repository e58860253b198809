package org.meteora.cli;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.config.Nearest;
import org.meteora.eval.command.TokenChoice;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Request;
import org.meteora.generate.StopTexts;
import org.meteora.io.Jsonl;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;

/**
 * A line of {@code generate --prompts}: a prompt, and settings of its own where it has some, under
 * the names of the options.
 *
 * @param settings the line's object; other fields than {@link #KNOWN} are passed over
 * @param where file and line
 */
record PromptLine(String text, JsonNode settings, String where) {
  private static final String STOP = "stop";
  private static final String ADAPTER = "adapter";
  private static final String ROUTER = "router";
  private static final String ROUTING_TOP_K = "routing_top_k";
  private static final String ROUTING_TEMPERATURE = "routing_temperature";

  private static final Set<String> KNOWN =
      Set.of(
          "prompt",
          "greedy",
          "temperature",
          "top_p",
          "top_k",
          "no_repeat_ngram_size",
          "seed",
          "max_new_tokens",
          STOP,
          ROUTING_TOP_K,
          ROUTING_TEMPERATURE,
          ROUTER,
          ADAPTER);

  /**
   * @throws UserException when it has no prompt
   */
  static PromptLine of(JsonNode line, String where) {
    return new PromptLine(Jsonl.text(line, "prompt", where), line, where);
  }

  /** Fields that may be meant for settings, and what is to be said of them. */
  static Set<String> misspelt(List<PromptLine> lines) {
    return lines.stream()
        .flatMap(line -> line.settings.properties().stream())
        .map(Map.Entry::getKey)
        .filter(name -> !KNOWN.contains(name) && Nearest.to(name, KNOWN).isPresent())
        .map(name -> "\"" + name + "\" is no setting and is left out" + Nearest.hint(name, KNOWN))
        .collect(Collectors.toCollection(TreeSet::new));
  }

  /**
   * The texts that end the answer.
   *
   * @param others where it names none
   * @throws UserException when they are no texts, or empty
   */
  List<String> stops(List<String> others) {
    var node = settings.get(STOP);
    if (node == null) {
      return others;
    }
    var stops = new ArrayList<String>();
    for (var each : node.isArray() ? node : Jsonl.JSON.createArrayNode().add(node)) {
      if (!each.isTextual() || each.textValue().isEmpty()) {
        throw bad(STOP, "a text that is not empty, or a list of such");
      }
      stops.add(each.textValue());
    }
    return stops;
  }

  /**
   * @param given how tokens are chosen where it does not say
   * @param maxNewTokens of the answer, where it does not say
   * @throws UserException when a setting is impossible, or is for another model
   */
  Request request(
      int[] ids, LoadedModel model, TokenChoice given, int maxNewTokens, StopTexts ends) {
    var request = new Request(ids, config(model, given, maxNewTokens), 0).endedBy(ends::ofAnswer);
    return routing(model).map(request::withRouting).orElse(request);
  }

  private GenerationConfig config(LoadedModel model, TokenChoice given, int maxNewTokens) {
    var own =
        new TokenChoice(
            value("greedy", JsonNode::isBoolean, JsonNode::booleanValue, "true or false"),
            number("temperature"),
            number("top_p"),
            integer("top_k"),
            integer("no_repeat_ngram_size"),
            value(
                "seed",
                node -> node.isIntegralNumber() && node.canConvertToLong(),
                JsonNode::longValue,
                "a whole number of 64 bits"));
    var choice = given.with(own);
    choice.check(name -> '"' + name + '"');
    int most = integer("max_new_tokens").orElse(maxNewTokens);
    if (most < 1) {
      throw bad("max_new_tokens", "at least 1");
    }
    return choice.over(model.generationConfig()).withMaxNewTokens(most);
  }

  /** Empty where it is routed as all are. */
  private Optional<RoutingSettings> routing(LoadedModel model) {
    var names = List.of(ROUTING_TOP_K, ROUTING_TEMPERATURE, ROUTER, ADAPTER);
    var said = names.stream().filter(settings::has).toList();
    if (said.isEmpty()) {
      return Optional.empty();
    }
    if (!model.spec().model().equals("meteora")) {
      throw new UserException("\"" + said.getFirst() + "\" needs --model meteora");
    }
    var all = model.generator().context().routing();
    return Optional.of(
        new RoutingSettings(
            integer(ROUTING_TOP_K).orElse(all.topK()),
            number(ROUTING_TEMPERATURE).orElse(all.temperature()),
            router(model).orElse(all.router())));
  }

  private Optional<Router> router(LoadedModel model) {
    var router = value(ROUTER, JsonNode::isTextual, JsonNode::textValue, "a router's name");
    var adapter = value(ADAPTER, JsonNode::isTextual, JsonNode::textValue, "an adapter's name");
    if (router.isPresent() && adapter.isPresent()) {
      throw new UserException("\"router\" or \"adapter\", one of them");
    }
    if (adapter.isEmpty()) {
      return router.map(model::router);
    }
    if (adapter.get().equals("base")) {
      return Optional.of(Router.none());
    }
    int index = model.adapterNames().indexOf(adapter.get());
    if (index < 0) {
      throw new UserException(
          "\"adapter\": there is none called %s%s (base: no adapter)"
              .formatted(adapter.get(), Nearest.hint(adapter.get(), model.adapterNames())));
    }
    return Optional.of(Router.fixed(index));
  }

  private Optional<Double> number(String name) {
    return value(name, JsonNode::isNumber, JsonNode::doubleValue, "a number");
  }

  private Optional<Integer> integer(String name) {
    return value(name, JsonNode::isInt, JsonNode::intValue, "a whole number");
  }

  private <T> Optional<T> value(
      String name, Predicate<JsonNode> fits, Function<JsonNode, T> convert, String right) {
    var node = settings.get(name);
    if (node == null) {
      return Optional.empty();
    }
    if (!fits.test(node)) {
      throw bad(name, right);
    }
    return Optional.of(convert.apply(node));
  }

  private UserException bad(String name, String right) {
    return new UserException("\"" + name + "\" must be " + right + ", not " + settings.get(name));
  }
}
