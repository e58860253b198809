package org.meteora.cli;

import java.util.List;
import java.util.Optional;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;
import org.meteora.io.HostMemory;
import picocli.CommandLine;

/**
 * Says in one line that memory ran out: what was asked for, what is free, which option to lower.
 */
final class MemoryAdvice {
  private static final Pattern DEVICE =
      Pattern.compile(
          "CUDA out of memory\\. Tried to allocate ([\\d.]+ \\wi?B)\\.(?: GPU (\\d+) has a total"
              + " capacity of ([\\d.]+ \\wi?B) of which ([\\d.]+ \\wi?B) is free)?");
  private static final Pattern HOST =
      Pattern.compile("allocate memory: you tried to allocate (\\d+) bytes");

  /** Options that take memory, those that take most of it first. */
  static final List<String> OPTIONS =
      List.of(
          "--batch-size",
          "--batch",
          "--sequences",
          "--tokens",
          "--context",
          "--max-length",
          "--max-seq-len",
          "--prompt-tokens",
          "--max-new-tokens",
          "--adapters");

  private MemoryAdvice() {}

  static Optional<UserException> explain(Throwable exception, CommandLine line) {
    for (var e = exception; e != null; e = e.getCause()) {
      var reason = reason(e);
      if (reason.isPresent()) {
        return reason.map(text -> new UserException(text + lower(line), exception));
      }
    }
    return Optional.empty();
  }

  private static Optional<String> reason(Throwable e) {
    var message = String.valueOf(e.getMessage());
    if (e instanceof TooLittleMemory) {
      return Optional.of(message);
    }
    if (e instanceof OutOfMemoryError) {
      return Optional.of(
          "the Java heap is full (%,d MiB): give it more with METEORA_JAVA_OPTS=-Xmx8g"
              .formatted(Runtime.getRuntime().maxMemory() >> 20));
    }
    var device = DEVICE.matcher(message);
    if (device.find()) {
      return Optional.of(
          device.group(2) == null
              ? "the GPU has too little memory: " + device.group(1) + " more are needed"
              : "GPU %s has too little memory: %s more are needed, %s of its %s are free"
                  .formatted(device.group(2), device.group(1), device.group(4), device.group(3)));
    }
    var host = HOST.matcher(message);
    return host.find()
        ? Optional.of(
            "too little memory: %,d MiB more are needed, %,d MiB are free"
                .formatted((Long.parseLong(host.group(1)) >> 20) + 1, HostMemory.available() >> 20))
        : Optional.empty();
  }

  /** The options of a command, of those that take memory. */
  private static String lower(CommandLine line) {
    var there =
        OPTIONS.stream()
            .filter(name -> line.getCommandSpec().findOption(name) != null)
            .limit(3)
            .collect(Collectors.joining(" or "));
    return there.isEmpty() ? "" : "; lower " + there;
  }
}
