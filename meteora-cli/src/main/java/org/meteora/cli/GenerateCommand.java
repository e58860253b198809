package org.meteora.cli;

import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.JsonOption;
import org.meteora.eval.command.GenerationOptions;
import org.meteora.eval.command.MaxNewTokensOption;
import org.meteora.eval.command.ModelOptions;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.TextStream;
import org.meteora.io.Jsonl;
import org.meteora.parallel.Collective;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora generate}: tries a model on prompts. */
@Command(
    name = "generate",
    description =
        "Answers prompts, streaming to the terminal; with --json as prompt, text and token_ids.",
    footer = {
      "",
      "Examples:",
      "  meteora generate --prompt '[INST] Is seven a prime number? [/INST]' --greedy",
      "  meteora generate --model alpaca --prompts prompts.jsonl --json --max-new-tokens 100"
    })
final class GenerateCommand implements Callable<Integer> {
  private static final Logger LOG = LoggerFactory.getLogger(GenerateCommand.class);

  @Mixin private ConfigOptions config;
  @Mixin private ModelOptions model;
  @Mixin private GenerationOptions generation;
  @Mixin private MaxNewTokensOption maxNewTokens;
  @Mixin private JsonOption json;

  @ArgGroup(exclusive = true, multiplicity = "1")
  private Input input;

  private static final class Input {
    @Option(names = "--prompt", paramLabel = "TEXT", description = "The prompt, taken as it is.")
    private String prompt;

    @Option(
        names = "--prompts",
        paramLabel = "FILE",
        description =
            "Lines of {\"prompt\": …}; - is standard input. One that cannot be answered is named"
                + " and skipped; the exit code is then 1.")
    private Path prompts;
  }

  @Override
  public Integer call() throws Exception {
    maxNewTokens.value();
    generation.check();
    var prompts =
        input.prompt != null
            ? List.of(new Prompt(input.prompt, "--prompt"))
            : Jsonl.read(
                input.prompts,
                (node, where) -> new Prompt(Jsonl.text(node, "prompt", where), where));
    if (prompts.isEmpty()) {
      throw new UserException(input.prompts + ": no prompt in it");
    }
    var spec = model.spec(config.load(), 1);
    generation.check(spec.basePath());
    try (var loaded =
        LoadedModel.load(
            spec, Collective.single(), new LoadedModel.Room(1, maxNewTokens.orDefault()))) {
      var settings =
          generation.apply(loaded.generationConfig()).withMaxNewTokens(maxNewTokens.orDefault());
      int skipped = 0;
      for (var prompt : prompts) {
        try {
          answer(loaded, settings, prompt.text);
        } catch (UserException e) {
          if (input.prompt != null) {
            throw e;
          }
          LOG.error("{}: {}: skipped", prompt.where, e.getMessage());
          skipped++;
        }
      }
      if (skipped > 0) {
        LOG.error("{} of {} prompts could not be answered", skipped, prompts.size());
      }
      return skipped > 0 ? 1 : 0;
    }
  }

  private record Prompt(String text, String where) {}

  private void answer(LoadedModel loaded, GenerationConfig settings, String prompt) {
    var tokenizer = loaded.tokenizer();
    var ids = tokenizer.encode(prompt, true);
    var stream = new TextStream(tokenizer);
    var tokens =
        loaded
            .generator()
            .generate(
                List.of(ids),
                settings,
                (row, token) -> {
                  if (!json.isGiven()) {
                    System.out.print(stream.add(token));
                    System.out.flush();
                  }
                })
            .getFirst();
    if (json.isGiven()) {
      var node =
          Jsonl.JSON
              .createObjectNode()
              .put("prompt", prompt)
              .put("text", tokenizer.decode(tokens, true));
      var array = node.putArray("token_ids");
      for (int token : tokens) {
        array.add(token);
      }
      System.out.println(node);
    } else {
      System.out.println(stream.rest());
    }
  }
}
