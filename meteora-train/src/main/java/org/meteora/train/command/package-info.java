/** The commands {@code train} and {@code train-lora}. */
package org.meteora.train.command;
