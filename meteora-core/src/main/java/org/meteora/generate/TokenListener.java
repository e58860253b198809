package org.meteora.generate;

/** Is told every new token of a generation as it is chosen. */
@FunctionalInterface
public interface TokenListener {
  /**
   * @param row index of the prompt in the list given to the generator
   * @param tokenId the token, never EOS
   */
  void onToken(int row, int tokenId);
}
