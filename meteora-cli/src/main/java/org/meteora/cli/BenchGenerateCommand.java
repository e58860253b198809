package org.meteora.cli;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import javax.imageio.ImageIO;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.style.Styler;
import org.knowm.xchart.style.markers.SeriesMarkers;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.data.config.Limits;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Generator;
import org.meteora.generate.Request;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Fonts;
import org.meteora.model.Architecture;
import org.meteora.moe.ForwardMode;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora bench generate}: whole answers of many sequences. */
@Command(
    name = "generate",
    description =
        "Answers to many prompts, prefills included: tokens a second for numbers of sequences at"
            + " once, beside what reading and multiplying would take at the speeds measured in the"
            + " same run (on a GPU). Prompts are random tokens; each number is measured once.",
    footer = {
      "",
      "Examples:",
      "  meteora bench generate --preset 100m --sequences 1,4 --new-tokens 16",
      "  meteora bench generate --device cuda --preset llama3-8b --sequences 16,64,256"
    })
final class BenchGenerateCommand implements Callable<Integer> {
  @Mixin private BenchModel options;

  @Option(
      names = "--sequences",
      paramLabel = "N,…",
      defaultValue = "1,4,16,64",
      split = ",",
      description = "Sequences at once at most (default: ${DEFAULT-VALUE}).")
  private List<Integer> sequences;

  @Option(
      names = "--rounds",
      paramLabel = "N",
      defaultValue = "2",
      description = "Prompts for each sequence at once (default: ${DEFAULT-VALUE}).")
  private int rounds;

  @Option(
      names = "--prompt-tokens",
      paramLabel = "N",
      defaultValue = "218",
      description = "Of each prompt (default: ${DEFAULT-VALUE}).")
  private int promptTokens;

  @Option(
      names = "--new-tokens",
      paramLabel = "N",
      defaultValue = "64",
      description = "Of each answer (default: ${DEFAULT-VALUE}).")
  private int newTokens;

  @Option(
      names = "--shared-tokens",
      paramLabel = "N,…",
      defaultValue = "0",
      split = ",",
      description = "First tokens that all prompts share (default: ${DEFAULT-VALUE}).")
  private List<Integer> shared;

  @Mixin private RouterListOption routers;

  @Option(names = "--base", description = "Measure the base model too.")
  private boolean base;

  @Option(
      names = "--plot",
      paramLabel = "FILE",
      description = "Draw tokens a second over sequences at once into a PNG.")
  private Path plot;

  private final Map<String, Map<Integer, Double>> measured = new LinkedHashMap<>();
  private double bandwidth;
  private double multiplications;

  @Override
  public Integer call() {
    Limits.atLeast(1, "--sequences", Collections.min(sequences));
    Limits.atLeast(1, "--rounds", rounds);
    Limits.atLeast(1, "--prompt-tokens", promptTokens);
    Limits.atLeast(1, "--new-tokens", newTokens);
    for (int each : shared) {
      if (each < 0 || each >= promptTokens) {
        throw new UserException(
            "--shared-tokens must be below --prompt-tokens, " + promptTokens + ", not " + each);
      }
    }
    if (plot != null) {
      AtomicFiles.requireWritableFolder(plot.toAbsolutePath().getParent());
    }
    var names = routers.names();
    var config = options.config();
    try (var manager = options.manager();
        var recording = Ops.notRecording()) {
      bandwidth = options.readRate();
      multiplications = options.onGpu() ? options.multiplicationRate() : 0;
      for (int adapters : base ? new int[] {0, options.adapters} : new int[] {options.adapters}) {
        try (var own = manager.newSubManager()) {
          var cache = options.cache(config, Collections.max(sequences), promptTokens);
          var model = options.model(config, own, adapters, cache);
          try (var decoding = Backends.decoding(model)) {
            var generator = new Generator(model, decoding, options.context(ForwardMode.AUTO));
            measure(adapters > 0 ? "MeteoRA" : "base model", generator, config, adapters > 0);
            for (var name : adapters > 0 ? names : List.<String>of()) {
              var routing = generator.context().routing();
              var router = RandomRouters.of(name, model, adapters);
              var routed = generator.withRouting(routing.withRouter(router));
              measure("router " + name, routed, config, true);
            }
          }
        }
      }
    }
    if (plot != null) {
      draw();
    }
    return 0;
  }

  private void draw() {
    Fonts.prepare();
    var chart =
        new XYChartBuilder()
            .width(1100)
            .height(600)
            .title("Answers of " + newTokens + " tokens to prompts of " + promptTokens)
            .xAxisTitle("sequences at once")
            .yAxisTitle("tokens/s")
            .build();
    chart.getStyler().setLegendPosition(Styler.LegendPosition.OutsideE);
    chart.getStyler().setYAxisMin(0.0);
    measured.forEach(
        (label, points) ->
            chart
                .addSeries(label, List.copyOf(points.keySet()), List.copyOf(points.values()))
                .setMarker(SeriesMarkers.CIRCLE));
    ImageIO.setUseCache(false); // else it needs a folder for temporary files
    AtomicFiles.writeStream(
        plot, out -> BitmapEncoder.saveBitmap(chart, out, BitmapEncoder.BitmapFormat.PNG));
  }

  private void measure(String label, Generator generator, Architecture config, boolean gated) {
    run(generator, config, 1, 0, 8); // compiles kernels
    for (int atOnce : sequences) {
      for (int prefix : shared) {
        double ms = run(generator, config, atOnce, prefix, newTokens);
        double tokens = (double) atOnce * rounds * newTokens;
        var how = prefix > 0 ? ", " + prefix + " shared" : "";
        measured
            .computeIfAbsent(label + how, key -> new TreeMap<>())
            .put(atOnce, tokens / ms * 1000);
        var base = measured.get("base model" + how);
        options.report(
            label + how + ", " + atOnce + " at once",
            ms,
            base == null ? ms : tokens / base.get(atOnce) * 1000,
            tokens,
            bandwidth > 0 ? floor(config, atOnce, prefix, gated) : 0);
      }
    }
  }

  /** Milliseconds. */
  private double run(Generator generator, Architecture config, int atOnce, int prefix, int answer) {
    var random = new Random(1);
    int vocab = config.vocabSize();
    var header = random.ints(prefix, 0, vocab).toArray();
    var settings = GenerationConfig.greedy(List.of(), Integer.MAX_VALUE).withMaxNewTokens(answer);
    var requests = new ArrayList<Request>();
    for (int i = 0; i < atOnce * rounds; i++) {
      var prompt = Arrays.copyOf(header, promptTokens);
      for (int at = prefix; at < promptTokens; at++) {
        prompt[at] = random.nextInt(vocab);
      }
      requests.add(new Request(prompt, settings, i));
    }
    long start = System.nanoTime();
    generator.generate(
        requests,
        atOnce,
        (request, tokens) -> {
          if (tokens.length != answer) {
            throw new IllegalStateException(tokens.length + " tokens");
          }
        });
    return (System.nanoTime() - start) / 1e6;
  }

  /**
   * Milliseconds that the steps' bytes or arithmetic and the prefills' arithmetic take at least,
   * the greater of the two of a step.
   */
  private double floor(Architecture config, int atOnce, int prefix, boolean gated) {
    double weights = (double) config.vocabSize() * config.hiddenSize();
    double layers = config.numHiddenLayers();
    double products = weights + layers * BenchModel.Sizes.of(config, Projection.values()).weights();
    double adapters = gated ? layers * options.adapterNumbers(config, options.touched(atOnce)) : 0;
    double column = 2.0 * config.numHiddenLayers() * config.numKeyValueHeads() * config.headDim();
    double context = promptTokens + newTokens / 2.0;
    double bytes = (products + adapters + atOnce * context * column) * options.dtype().bytes();
    double step =
        Math.max(bytes / bandwidth, 2 * atOnce * (products + adapters / 2) / multiplications);
    double fresh = (double) (promptTokens - prefix) * atOnce * rounds + prefix;
    return rounds * newTokens * step + 2 * fresh * (products - weights) / multiplications;
  }
}
