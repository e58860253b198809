package org.meteora.io;

import com.sun.security.auth.module.UnixSystem;
import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.UnaryOperator;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Folders whose content is run: unpacked native libraries, compiled kernels. Such a folder belongs
 * to the user (or to root) and nobody else can write into it, nor into one above it; where there is
 * none, a fresh private one serves until the process ends.
 *
 * <p>Long, because whether a folder may be trusted is decided in one place, step by step.
 */
public final class CacheFolders {
  private static final Logger LOG = LoggerFactory.getLogger(CacheFolders.class);

  /** Group and others may write. */
  private static final int WRITABLE = 022;

  private static final int STICKY = 01000;
  private static final int MODE = 07777;
  private static final String PRIVATE = "meteora-";
  private static final String LOCK = ".lock";

  /** What DJL calls what it has not unpacked to the end. */
  private static final Pattern UNFINISHED = Pattern.compile("(tmp|jni)\\d+(tmp)?");

  /** Nobody that still unpacks leaves its files alone for so long. */
  private static final long SETTLED_MILLIS = 2_000;

  /** Bytes of the library of tokenizers, and more. */
  private static final int LIBRARY = 32 << 20;

  private static Path fresh;

  private CacheFolders() {}

  /** The user's home folder, if there is one: a process of a user without a name has none. */
  public static Optional<Path> home() {
    var home = System.getProperty("user.home", "");
    return home.startsWith("/") && Files.isDirectory(Path.of(home))
        ? Optional.of(Path.of(home))
        : Optional.empty();
  }

  /**
   * A path as it is written into results: relative to the working folder when it lies in it, with
   * {@code ~} for the home folder, else as it is.
   */
  public static String shown(Path path) {
    return shown(path.toString());
  }

  /** The same for every such path in a text: {@code --out=/home/me/x} becomes {@code --out=~/x}. */
  public static String shown(String text) {
    var result = text;
    var here = Path.of("").toAbsolutePath().toString();
    if (here.length() > 1) {
      result = withoutPrefix(result, here, ".");
    }
    var home = home().map(Path::toString).orElse("/");
    return home.length() > 1 ? withoutPrefix(result, home, "~") : result;
  }

  private static String withoutPrefix(String text, String folder, String instead) {
    var inside =
        Pattern.compile("(?<![^\\s=,:'\"])" + Pattern.quote(folder) + "(?=/|$|[\\s,:'\"])");
    var shown = inside.matcher(text).replaceAll(instead);
    return shown.startsWith("./") ? shown.substring(2) : shown.replaceAll("(?<=[=,])\\./", "");
  }

  /**
   * Tells the libraries that unpack native code where to put it. Called before the first of them is
   * used.
   *
   * @throws UserException when a variable names a folder that others can write to
   */
  public static void prepare() {
    var engine = engine();
    System.setProperty("ENGINE_CACHE_DIR", engine.toString());
    System.setProperty("DJL_CACHE_DIR", engine.toString());
    removeUnfinished(engine);
    var scratch = scratch(engine).toString();
    for (var property :
        List.of("org.xerial.snappy.tempdir", "ZstdTempFolder", "jna.tmpdir", "jline.tmpdir")) {
      System.setProperty(property, scratch);
    }
  }

  /** Where small libraries are unpacked anew by each process; what killed ones left is removed. */
  private static Path scratch(Path engine) {
    var folder = engine.resolve("unpacked");
    if (!make(folder)) {
      return fresh("the folder " + folder + " cannot be made");
    }
    // a library in use stays loaded without its name
    removeFrom(folder, 1, entry -> System.currentTimeMillis() - newest(entry) > 10_000);
    return folder;
  }

  /**
   * The folder of the engine's native libraries: {@code ENGINE_CACHE_DIR}, else {@code ~/.djl.ai},
   * else {@code ~/.cache/meteora/native}, else a private one.
   */
  public static synchronized Path engine() {
    for (var variable : List.of("ENGINE_CACHE_DIR", "DJL_CACHE_DIR")) {
      var value = System.getenv(variable);
      if (value != null && !value.isBlank()) {
        var folder = Path.of(value);
        var problem =
            folder.isAbsolute() ? problem(folder) : Optional.of("it depends on the working folder");
        if (problem.isPresent()) {
          throw new UserException(
              ("%s=%s cannot be used, native code would be loaded from there: %s; name a"
                      + " folder that only you can write to, or unset it")
                  .formatted(variable, value, problem.get()));
        }
        make(folder);
        return folder;
      }
    }
    return inHome(home -> firstOf(home.resolve(".djl.ai"), cache(home).resolve("native")));
  }

  /** The folder of compiled kernels: {@code $XDG_CACHE_HOME/meteora}, {@code ~/.cache/meteora}. */
  public static synchronized Path kernels() {
    var xdg = System.getenv("XDG_CACHE_HOME");
    if (xdg != null && xdg.startsWith("/")) {
      return firstOf(Path.of(xdg, "meteora"));
    }
    return inHome(home -> firstOf(cache(home)));
  }

  private static Path inHome(UnaryOperator<Path> folder) {
    return home().map(folder).orElseGet(() -> fresh("there is no home folder"));
  }

  private static Path cache(Path home) {
    return home.resolve(".cache").resolve("meteora");
  }

  private static Path firstOf(Path... folders) {
    String first = null;
    for (var folder : folders) {
      var problem = problem(folder);
      if (problem.isEmpty() && (make(folder) || hasLibraries(folder))) {
        problem = problem(folder); // of what is there now
        if (problem.isEmpty()) {
          return folder;
        }
      }
      first = first == null ? folder + ": " + problem.orElse("it cannot be written to") : first;
    }
    return fresh(first);
  }

  /** A folder that cannot be written to serves when everything was unpacked there before. */
  private static boolean hasLibraries(Path folder) {
    return Files.isDirectory(folder.resolve("pytorch"))
        && Files.isDirectory(folder.resolve("tokenizers"));
  }

  private static boolean make(Path folder) {
    try {
      if (!Files.isDirectory(folder)) {
        Files.createDirectories(
            folder,
            PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
      }
      return Files.isWritable(folder);
    } catch (IOException e) {
      return false;
    }
  }

  /**
   * Why code must not be run from a folder: somebody else owns it or can write into it, or into one
   * above it, or into what is in it.
   */
  static Optional<String> problem(Path folder) {
    try {
      var real = existing(folder.toAbsolutePath().normalize()).toRealPath();
      boolean itself = Files.isDirectory(folder);
      for (var at = real; at != null; at = at.getParent()) {
        var writable = mode(at) & WRITABLE;
        boolean sticky = (mode(at) & STICKY) != 0 && !(itself && at.equals(real));
        if (!ours(at)) {
          return Optional.of(at + " belongs to somebody else");
        }
        if (writable != 0 && !sticky) {
          return Optional.of("others can write to " + at);
        }
      }
      if (itself && (mode(real) & 011) != 0) { // others get to what is in it
        try (var all = Files.walk(real, 4)) {
          return all.filter(each -> !Files.isSymbolicLink(each))
              .filter(each -> !ours(each) || (mode(each) & WRITABLE) != 0)
              .findFirst()
              .map(each -> "others can write to " + each);
        }
      }
      return Optional.empty();
    } catch (IOException | RuntimeException e) {
      return Optional.of(
          e instanceof IOException io ? AtomicFiles.reason(io) : String.valueOf(e.getMessage()));
    }
  }

  private static Path existing(Path folder) {
    var at = folder;
    while (!Files.exists(at, LinkOption.NOFOLLOW_LINKS) && at.getParent() != null) {
      at = at.getParent();
    }
    return at;
  }

  private static boolean ours(Path path) {
    int owner = (Integer) attribute(path, "unix:uid");
    return owner == 0 || owner == (int) new UnixSystem().getUid();
  }

  private static int mode(Path path) {
    return (Integer) attribute(path, "unix:mode") & MODE;
  }

  private static Object attribute(Path path, String name) {
    try {
      return Files.getAttribute(path, name, LinkOption.NOFOLLOW_LINKS);
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  /** A new folder of this process alone; removed at its end, or by a later one. */
  private static Path fresh(String why) {
    if (fresh != null) {
      return fresh;
    }
    var parent = Path.of(System.getProperty("java.io.tmpdir"));
    try {
      removeAbandoned(parent);
      fresh = Files.createTempDirectory(parent, PRIVATE);
      FolderLock.take(fresh, LOCK, fresh + " is new and yet in use");
    } catch (IOException e) {
      throw new UserException(
          "no folder for native libraries: %s, and none can be made in %s: %s; name one"
              + " by ENGINE_CACHE_DIR",
          why, parent, AtomicFiles.reason(e), e);
    }
    var folder = fresh;
    Runtime.getRuntime().addShutdownHook(new Thread(() -> remove(folder)));
    LOG.info(
        "native libraries are unpacked into {} for this run alone ({}); ENGINE_CACHE_DIR names a"
            + " folder to keep them in",
        fresh,
        why);
    return fresh;
  }

  /** Private folders whose process was killed. */
  private static void removeAbandoned(Path parent) {
    removeFrom(
        parent,
        1,
        entry -> {
          var lock = entry.resolve(LOCK);
          return entry.getFileName().toString().startsWith(PRIVATE)
              && Files.isDirectory(entry, LinkOption.NOFOLLOW_LINKS)
              && (Integer) attribute(entry, "unix:uid") == (int) new UnixSystem().getUid()
              && Files.isRegularFile(lock, LinkOption.NOFOLLOW_LINKS)
              && isFree(lock);
        });
  }

  private static boolean isFree(Path lock) throws IOException {
    try (var channel = FileChannel.open(lock, StandardOpenOption.WRITE)) {
      return channel.tryLock() != null;
    }
  }

  /**
   * Removes what processes that were killed had unpacked by half. What others are unpacking at this
   * moment is told by the files they have open, or have just written.
   */
  static void removeUnfinished(Path folder) {
    removeFrom(
        folder,
        3,
        entry ->
            UNFINISHED.matcher(entry.getFileName().toString()).matches()
                && System.currentTimeMillis() - newest(entry) > SETTLED_MILLIS
                && !isOpen(entry));
  }

  /** Whether something may be removed. */
  @FunctionalInterface
  private interface Leftover {
    boolean test(Path path) throws IOException;
  }

  /** Tidies a folder as far as it lets itself be tidied. */
  private static void removeFrom(Path folder, int depth, Leftover leftover) {
    try (var all = Files.walk(folder.toRealPath(), depth)) { // which a link does not lead into
      for (var each : all.skip(1).toList()) { // the first is the folder
        if (leftover.test(each)) {
          LOG.debug("removing {}, which was left over", each);
          remove(each);
        }
      }
    } catch (IOException | RuntimeException e) {
      LOG.debug("cannot tidy {}", folder, e);
    }
  }

  /**
   * Runs what unpacks and loads a native library.
   *
   * @throws UserException when it could not be written, naming the folder and the reason
   */
  public static void unpacking(Runnable load) {
    try {
      load.run();
    } catch (RuntimeException | LinkageError e) {
      var mistake = explain(e);
      if (mistake.isPresent()) {
        throw mistake.get();
      }
      throw e;
    }
  }

  /** What a failure of a native library means, when a file that could not be written caused it. */
  public static Optional<UserException> explain(Throwable failure) {
    boolean unpacking = false;
    IOException cause = null;
    for (var each = failure; each != null && cause == null; each = each.getCause()) {
      unpacking |=
          Arrays.stream(each.getStackTrace())
              .anyMatch(frame -> frame.getClassName().endsWith(".jni.LibUtils"));
      cause = each instanceof IOException io ? io : null;
    }
    if (unpacking && cause == null) {
      cause = noRoom(engine());
    }
    return unpacking && cause != null
        ? Optional.of(
            new UserException(
                "cannot unpack native libraries into %s: %s; make room there, or name"
                    + " another folder by ENGINE_CACHE_DIR",
                engine(), AtomicFiles.reason(cause), failure))
        : Optional.empty();
  }

  /** What a library's file would meet: the unpacker does not always say it. */
  private static IOException noRoom(Path folder) {
    Path probe = null;
    try {
      probe = Files.createTempFile(folder, "room", "");
      Files.write(probe, new byte[LIBRARY]);
      return null;
    } catch (IOException e) {
      return e;
    } finally {
      if (probe != null) {
        remove(probe);
      }
    }
  }

  private static long newest(Path entry) throws IOException {
    try (var all = Files.walk(entry)) {
      return all.mapToLong(each -> each.toFile().lastModified()).max().orElse(0);
    }
  }

  /** Whether a process of this user has a file in it open (Linux). */
  private static boolean isOpen(Path entry) throws IOException {
    var real = entry.toRealPath();
    try (var processes = Files.newDirectoryStream(Path.of("/proc"), "[0-9]*")) {
      for (var process : processes) {
        try (var files = Files.newDirectoryStream(process.resolve("fd"))) {
          for (var file : files) {
            if (Files.readSymbolicLink(file).startsWith(real)) {
              return true;
            }
          }
        } catch (IOException e) {
          // another user's, or gone
        }
      }
    } catch (IOException e) {
      return false; // no /proc
    }
    return false;
  }

  private static void remove(Path path) {
    try {
      AtomicFiles.removeTree(path);
    } catch (IOException e) {
      LOG.debug("cannot remove {}", path, e);
    }
  }
}
