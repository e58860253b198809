package org.meteora.data.hub;

import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import org.meteora.io.Digests;

/**
 * A file of a listing.
 *
 * @param path relative, with slashes, as the server gave it: not yet safe to write to
 * @param size in bytes
 * @param hash what its content must hash to, in hex: the SHA-256 of a big file (64 digits), the git
 *     blob's SHA-1 of a small one (40 digits)
 */
public record HubFile(String path, long size, String hash) {

  /** A digest that ends in {@link #hash} when fed the right content. */
  MessageDigest digest() {
    if (hash.length() == 64) {
      return Digests.sha256();
    }
    var digest = Digests.of("SHA-1");
    digest.update(("blob " + size + "\0").getBytes(StandardCharsets.US_ASCII));
    return digest;
  }
}
