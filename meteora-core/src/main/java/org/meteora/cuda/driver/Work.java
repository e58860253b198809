package org.meteora.cuda.driver;

/** Something that can be queued on a stream, again and again. */
public interface Work {
  void on(Stream stream);
}
