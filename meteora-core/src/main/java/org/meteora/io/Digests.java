package org.meteora.io;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import org.meteora.UserException;

/** Hashes of files. */
public final class Digests {
  private static final int BUFFER = 1 << 20;

  private Digests() {}

  /** A new SHA-256. */
  public static MessageDigest sha256() {
    return of("SHA-256");
  }

  /**
   * A new digest.
   *
   * @param algorithm one that every JDK has: SHA-256 or SHA-1
   */
  public static MessageDigest of(String algorithm) {
    try {
      return MessageDigest.getInstance(algorithm);
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  /**
   * The SHA-256 of a file in hexadecimal.
   *
   * @throws UserException when it cannot be read
   */
  public static String ofFile(Path file) {
    var digest = sha256();
    update(digest, file, Long.MAX_VALUE);
    return HexFormat.of().formatHex(digest.digest());
  }

  /**
   * Feeds a digest with the first bytes of a file.
   *
   * @param maximum how many at most
   * @throws UserException when it cannot be read
   */
  public static void update(MessageDigest digest, Path file, long maximum) {
    try (var in = Files.newInputStream(file)) {
      var buffer = new byte[BUFFER];
      long left = maximum;
      for (int n;
          left > 0 && (n = in.read(buffer, 0, (int) Math.min(left, BUFFER))) >= 0;
          left -= n) {
        digest.update(buffer, 0, n);
      }
    } catch (IOException e) {
      throw new UserException("cannot read " + file + ": " + AtomicFiles.reason(e), e);
    }
  }
}
