package org.meteora.io;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Pattern;

/** Memory of this machine, or of the container that this process runs in. */
public final class HostMemory {
  private static final Pattern AVAILABLE = Pattern.compile("(?m)^MemAvailable:\\s+(\\d+) kB");
  private static final Pattern CACHED = Pattern.compile("(?m)^inactive_file (\\d+)");

  private HostMemory() {}

  /**
   * Bytes that can be taken without anything being swapped out: cached files count as free. {@code
   * Long.MAX_VALUE} where that cannot be told.
   */
  public static long available() {
    return available(Path.of("/proc/meminfo"), Path.of("/sys/fs/cgroup"));
  }

  static long available(Path meminfo, Path cgroup) {
    long free = number(AVAILABLE, read(meminfo), Long.MAX_VALUE >> 10) << 10;
    try {
      long limit = Long.parseLong(read(cgroup.resolve("memory.max")).strip());
      long used = Long.parseLong(read(cgroup.resolve("memory.current")).strip());
      long cached = number(CACHED, read(cgroup.resolve("memory.stat")), 0);
      return Math.min(free, Math.max(0, limit - used + cached));
    } catch (NumberFormatException e) {
      return free; // no limit, or not a cgroup of version 2
    }
  }

  private static long number(Pattern pattern, String text, long otherwise) {
    var matcher = pattern.matcher(text);
    return matcher.find() ? Long.parseLong(matcher.group(1)) : otherwise;
  }

  private static String read(Path file) {
    try {
      return Files.readString(file);
    } catch (IOException e) {
      return "";
    }
  }
}
